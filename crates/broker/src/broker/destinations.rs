//! Queues and topics: found, made on first use, removed; and where a name that a client sends to leads.

use std::sync::Arc;

use kahawai_message::front::{Event, Refusal};
use kahawai_message::storage::{Storage, StorageError, SubscriptionKey};
use kahawai_message::{Destination, DestinationKind, Millis, Text};

use super::{Broker, Call, Durable, Filter, Stop};
use crate::connection::Targets;
use crate::effect::{Effect, Outcome};
use crate::line::{Body, HeldState, Line};
use crate::pattern;
use crate::place::Place;
use crate::slab::{ConnectionKey, LineKey, PlaceKey};

impl Broker {
    /// Learns what the store holds. To be called once, on a new broker, before anybody connects. Looks at no message.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub fn recover(&mut self, now: Millis, storage: &mut dyn Storage) -> Result<(), StorageError> {
        self.recovered_end = storage.appended_end();
        for (key, name, subscriptions) in storage.destinations() {
            let place_key = self.insert_place(Place::new(name, Some(key), None));
            for info in subscriptions {
                let subscription =
                    SubscriptionKey { client_id: info.client_id, name: info.subscription_name };
                let subscribed = info.subscribed_destination.unwrap_or(info.destination);
                let line = self.insert_durable_line(place_key, &Arc::new(subscription.clone()));
                let durable = self.durables.entry(Arc::new(subscription)).or_insert_with_key(|key| Durable {
                    key: Arc::clone(key),
                    wanted: pattern::items(&subscribed),
                    subscribed,
                    offline_filter: offline_filter(info.selector.as_ref()),
                    selector: info.selector,
                    no_local: info.no_local,
                    consumer: None,
                    lines: Vec::new(),
                });
                durable.lines.push(line);
                self.watch_offline(line);
            }
            let Some(place) = self.places.get(place_key) else { continue };
            let lines = place.queue.into_iter().chain(place.durables.iter().copied()).collect::<Vec<_>>();
            if storage.count(key) > 0 {
                for line in lines {
                    if let Some(line) = self.lines.get_mut(line) {
                        line.rewind();
                    }
                    // Which of them expire is not known; the sweep finds out, and stops if none do.
                    self.plan_sweep(line, now + self.options.sweep_interval_ms);
                }
            }
        }
        Ok(())
    }

    /// The broker's place for a destination, if there is one.
    pub(super) fn find_place(&self, name: &Destination) -> Option<PlaceKey> {
        self.names.get(name).copied()
    }

    fn insert_place(&mut self, mut place: Place) -> PlaceKey {
        place.prioritised =
            self.options.prioritised.iter().any(|wanted| pattern::matches(wanted, &place.name));
        let (name, stored_at) = (place.name.clone(), place.stored_at);
        let is_queue = name.kind.is_queue();
        // A queue `Consumer.*.VirtualTopic.>` changes where a topic leads.
        if name.kind == DestinationKind::Queue && name.name.starts_with(VIRTUAL_CONSUMER) {
            self.routing_epoch += 1;
        }
        let key = self.places.insert(Box::new(place));
        if is_queue {
            let line = self.lines.insert(Box::new(Line::new(key, stored_at, None)));
            if let Some(place) = self.places.get_mut(key) {
                place.queue = Some(line);
            }
        }
        self.names.insert(name, key);
        if let Some(stored_at) = stored_at {
            self.stored_places.insert(stored_at, key);
        }
        key
    }

    pub(super) fn insert_durable_line(&mut self, topic: PlaceKey, key: &Arc<SubscriptionKey>) -> LineKey {
        let stored_at = self.places.get(topic).and_then(|place| place.stored_at);
        let line = self.lines.insert(Box::new(Line::new(topic, stored_at, Some(Arc::clone(key)))));
        if let Some(place) = self.places.get_mut(topic) {
            place.durables.push(line);
        }
        line
    }

    /// The queue or topic of this name, made if need be. `by` is who wants it; only that connection's own temporary
    /// destinations are made.
    pub(super) fn find_or_make_place(
        &mut self,
        name: &Destination,
        by: Option<ConnectionKey>,
        call: &mut Call<'_>,
    ) -> Result<PlaceKey, Stop> {
        if let Some(place) = self.find_place(name) {
            return Ok(place);
        }
        if !pattern::is_valid_name(name) {
            return Err(Refusal::Invalid(format!("'{name}' is no valid destination")).into());
        }
        if pattern::is_wildcard(name) || pattern::is_list(name) {
            return Err(Refusal::Invalid(format!("'{name}' is a pattern, not a destination")).into());
        }
        if self.places.len() >= self.options.limits.destinations_max {
            return Err(Refusal::Limit("too many destinations".into()).into());
        }
        if name.kind.is_temporary() {
            return self.make_temporary(name, by);
        }
        Ok(self.make_place(name, call)?)
    }

    /// A new queue or topic; those who subscribed to a pattern that matches it get it too.
    pub(super) fn make_place(
        &mut self,
        name: &Destination,
        call: &mut Call<'_>,
    ) -> Result<PlaceKey, StorageError> {
        let stored_at = call.storage.destination(name);
        let place = self.insert_place(Place::new(name.clone(), Some(stored_at), None));
        self.attach_those_who_wait(place, call)?;
        Ok(place)
    }

    fn make_temporary(&mut self, name: &Destination, by: Option<ConnectionKey>) -> Result<PlaceKey, Stop> {
        let missing = || Stop::Refused(Refusal::NotFound(format!("there is no '{name}'")));
        let by = by.ok_or_else(missing)?;
        let connection = self.connection(by)?;
        if !is_own_temporary(&connection.info.connection_id, &name.name) {
            return Err(missing());
        }
        let place = self.insert_place(Place::new(name.clone(), None, Some(by)));
        self.connection(by)?.temporary.push(place);
        Ok(place)
    }

    /// The physical name of what the client calls `named`: a temporary name without a colon is the connection's own.
    ///
    /// `STOMP`'s `/temp-queue/replies` becomes `<connection id>:replies`, so that equal names of two connections are two
    /// queues, and the name in a reply-to header means the same to everybody.
    pub(super) fn physical(
        &mut self,
        by: ConnectionKey,
        named: &Destination,
    ) -> Result<Option<Destination>, Stop> {
        if !named.kind.is_temporary() || named.name.contains(':') {
            return Ok(None);
        }
        let connection = self.connection(by)?;
        let name = format!("{}:{}", connection.info.connection_id, named.name);
        Ok(Some(Destination::new(named.kind, Text::from(name))))
    }

    /// Where a message for `named` goes.
    #[inline]
    pub(super) fn route(
        &mut self,
        by: ConnectionKey,
        named: &Destination,
        call: &mut Call<'_>,
    ) -> Result<Targets, Stop> {
        let epoch = self.routing_epoch;
        match self.connection(by)?.routes.get(named, epoch) {
            Some(targets) => Ok(targets.clone()),
            None => self.find_route(by, named, call),
        }
    }

    #[cold]
    fn find_route(
        &mut self,
        by: ConnectionKey,
        named: &Destination,
        call: &mut Call<'_>,
    ) -> Result<Targets, Stop> {
        let mut found = Vec::new();
        for item in pattern::items(named) {
            let item = self.physical(by, &item)?.unwrap_or(item);
            let place = self.find_or_make_place(&item, Some(by), call)?;
            if !found.contains(&place) {
                found.push(place);
            }
            if item.kind == DestinationKind::Topic && item.name.starts_with(VIRTUAL_TOPIC) {
                let consumers = Destination::queue(format!("{VIRTUAL_CONSUMER}*.{}", item.name));
                for queue in self.matching(&consumers) {
                    if !found.contains(&queue) {
                        found.push(queue);
                    }
                }
            }
        }
        let targets = match found[..] {
            [] => return Err(Refusal::Invalid(format!("'{named}' names no destination")).into()),
            [one] => Targets::One(one),
            _ => Targets::Several(found.into()),
        };
        let epoch = self.routing_epoch;
        self.connection(by)?.routes.put(named.clone(), targets.clone(), epoch);
        Ok(targets)
    }

    /// Existing destinations that a pattern matches, by name. As many steps as there are names with its literal beginning.
    pub(super) fn matching(&self, wanted: &Destination) -> Vec<PlaceKey> {
        let prefix = pattern::literal_prefix(wanted);
        let first = Destination::new(wanted.kind, Text::from(prefix));
        self.names
            .range(first..)
            .take_while(|(name, _)| name.kind == wanted.kind && name.name.starts_with(prefix))
            .filter(|(name, _)| pattern::matches(wanted, name))
            .map(|(_, place)| *place)
            .collect()
    }

    /// Removes a queue or topic with all that it holds, as an operator asks. Refused while somebody consumes from it.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotFound`], [`Refusal::InUse`], [`Refusal::Storage`].
    pub fn remove_destination(
        &mut self,
        name: &Destination,
        storage: &mut dyn Storage,
    ) -> Result<Outcome, Refusal> {
        let place = self.find_place(name).and_then(|key| self.places.get(key));
        let Some(place) = place else {
            return Err(Refusal::NotFound(format!("there is no '{name}'")));
        };
        let lines = place.queue.iter().chain(&place.durables);
        let used = !place.subscribers.is_empty()
            || place.owner.is_some()
            || lines
                .filter_map(|line| self.lines.get(*line))
                .any(|line| line.members_of_all_kinds().next().is_some());
        match place.stored_at {
            Some(stored_at) if !used => {
                let end = storage
                    .remove_destination(stored_at)
                    .map_err(|error| Refusal::from(Stop::from(error)))?;
                Ok(Outcome::At(end))
            }
            _ => Err(Refusal::InUse(format!("'{name}' is in use"))),
        }
    }

    /// A queue or topic is gone. Who consumed only from there is told.
    pub(super) fn remove_place(&mut self, key: PlaceKey, call: &mut Call<'_>) {
        let Some(place) = self.places.remove(key) else { return };
        self.names.remove(&place.name);
        if let Some(stored_at) = place.stored_at {
            self.stored_places.remove(&stored_at);
        }
        self.routing_epoch += 1;
        let mut orphans = place.subscribers;
        for &orphan in &orphans {
            if let Some(consumer) = self.consumers.get_mut(orphan) {
                consumer.topics.retain(|topic| *topic != key);
            }
        }
        for line in place.queue.into_iter().chain(place.durables) {
            self.remove_line(line, &mut orphans);
        }
        for orphan in orphans {
            let Some(consumer) = self.consumers.get(orphan) else { continue };
            if !consumer.lines.is_empty()
                || !consumer.topics.is_empty()
                || self.waiting_for_names.contains(&orphan)
            {
                continue;
            }
            let reason = Refusal::NotFound(format!("'{}' was removed", place.name));
            let event = Event::ConsumerClosed(consumer.number, reason);
            let (connection, number) = (consumer.connection, consumer.number);
            call.fx.push(Effect::Event { connection, event });
            if let Some(connection) = self.connections.get_mut(connection) {
                connection.consumers.remove(&number);
                connection.consumer_last = None;
            }
            self.close_consumer(orphan);
        }
    }

    /// A line is gone. Its consumers are added to `orphans`.
    pub(super) fn remove_line(&mut self, key: LineKey, orphans: &mut Vec<crate::slab::ConsumerKey>) {
        let Some(line) = self.lines.remove(key) else { return };
        if let Some(at) = line.sweep_at {
            self.sweeps.remove(&(at, key));
        }
        for member in line.members_of_all_kinds() {
            if let Some(consumer) = self.consumers.get_mut(member.consumer) {
                consumer.lines.retain(|other| *other != key);
                consumer.starved.remove(&key);
            }
            orphans.push(member.consumer);
        }
        if let Some(subscription) = &line.subscription {
            if let Some(durable) = self.durables.get_mut(subscription) {
                durable.lines.retain(|other| *other != key);
            }
            if let Some(place) = self.places.get_mut(line.place) {
                place.durables.retain(|other| *other != key);
            }
        }
        // The order in which they are let go is seen by nobody.
        let held = line.held.values().map(|held| held.body);
        for body in line.waiting.values().map(|waiting| waiting.body).chain(held) {
            if let Body::Memory(message) = body {
                self.memory.release(message);
            }
        }
    }

    pub(super) fn held_state(&self, line: LineKey, slot: crate::line::Slot) -> Option<HeldState> {
        self.lines.get(line)?.held.get(&slot).map(|held| held.state)
    }
}

/// Topics under this name are also delivered to the queues of [`VIRTUAL_CONSUMER`] that exist (ActiveMQ's default).
const VIRTUAL_TOPIC: &str = "VirtualTopic.";
/// `Consumer.<anything>.VirtualTopic.ORDERS` is a queue that gets what is sent to topic `VirtualTopic.ORDERS`.
const VIRTUAL_CONSUMER: &str = "Consumer.";

/// Temporary destinations are named after their connection: `ID:host-1-2-0:1:7`.
fn is_own_temporary(connection_id: &str, name: &str) -> bool {
    name.strip_prefix(connection_id).is_some_and(|rest| rest.len() > 1 && rest.starts_with(':'))
}

/// What a durable subscription drops while it is offline. A selector of a foreign store that does not parse drops nothing.
pub(super) fn offline_filter(selector: Option<&Text>) -> Filter {
    let selector = selector.and_then(|text| kahawai_selector::Selector::parse(text).ok()).map(Arc::new);
    Filter { selector, no_local: None }
}
