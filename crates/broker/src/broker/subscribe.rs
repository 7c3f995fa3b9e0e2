//! Consumers come and go; durable subscriptions stay.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use kahawai_message::front::{ConsumerNumber, Refusal, Subscribe};
use kahawai_message::storage::{AckBy, StorageError, SubscriptionKey};
use kahawai_message::stored::SubscriptionInfo;
use kahawai_message::{Destination, DestinationKind, Text};
use kahawai_selector::Selector;
use kahawai_types::Lsn;

use super::destinations::offline_filter;
use super::{Broker, Call, Durable, Stop};
use crate::consumer::{Browse, BrowseStep, Consumer, Deliveries, Filter, From as Origin, OutState, Role};
use crate::effect::Outcome;
use crate::line::Member;
use crate::pattern;
use crate::slab::{ConnectionKey, ConsumerKey, LineKey, PlaceKey};

/// Consumers of front ends have no session; STOMP's in ActiveMQ have this.
const NO_SESSION: i64 = -1;

impl Broker {
    pub(super) fn subscribe(
        &mut self,
        by: ConnectionKey,
        subscribe: Subscribe,
        call: &mut Call<'_>,
    ) -> Result<Outcome, Stop> {
        let limits = self.options.limits.clone();
        let connection = self.connection(by)?;
        if connection.consumers.contains_key(&subscribe.consumer) {
            return Err(Refusal::Invalid(format!("consumer {} exists already", subscribe.consumer.0)).into());
        }
        if connection.consumers.len() >= limits.consumers_per_connection_max {
            return Err(Refusal::Limit("too many consumers on this connection".into()).into());
        }
        let (client_id, connection_id) =
            (connection.info.client_id.clone(), connection.info.connection_id.clone());
        let wanted = self.wanted(by, &subscribe.destination)?;
        let selector = parse_selector(subscribe.selector.as_ref())?;
        let only_topics = wanted.iter().all(|wanted| wanted.kind == DestinationKind::Topic);
        let only_queues = wanted.iter().all(|wanted| wanted.kind.is_queue());
        let role = match &subscribe.durable_name {
            _ if subscribe.browser && !only_queues => {
                return Err(Refusal::Invalid("only queues can be browsed".into()).into());
            }
            _ if subscribe.browser => Role::Browser,
            // On a queue the name means nothing, as in ActiveMQ.
            Some(name) if only_topics => {
                let Some(client_id) = client_id else {
                    return Err(Refusal::Invalid("a durable subscription needs a client id".into()).into());
                };
                Role::Durable(Arc::new(SubscriptionKey { client_id, name: name.clone() }))
            }
            _ => Role::Ordinary,
        };
        let consumer = Consumer {
            connection: by,
            number: subscribe.consumer,
            several: wanted.len() > 1 || wanted.iter().any(pattern::is_wildcard),
            filter: Filter { selector, no_local: subscribe.no_local.then(|| connection_id.clone()) },
            priority: subscribe.priority,
            exclusive: subscribe.exclusive,
            prefetch: subscribe.prefetch.clamp(1, limits.prefetch_max.max(1)),
            by: AckBy {
                connection: connection_id,
                session: NO_SESSION,
                consumer: i64::from(subscribe.consumer.0),
            },
            deliveries: Deliveries::default(),
            outstanding: 0,
            lines: Vec::new(),
            topics: Vec::new(),
            starved: BTreeSet::new(),
            turn: None,
            backlog: VecDeque::new(),
            backlog_scheduled: false,
            browse: None,
            delivered: 0,
            acknowledged: 0,
            wanted,
            role: role.clone(),
        };
        match role {
            Role::Browser => self.start_browser(consumer, call),
            Role::Ordinary => self.start_ordinary(consumer, call),
            Role::Durable(key) => self.start_durable(consumer, key, &subscribe, call),
        }
    }

    /// What a client subscribed to, item by item, checked.
    fn wanted(&mut self, by: ConnectionKey, named: &Destination) -> Result<Vec<Destination>, Stop> {
        let mut wanted = Vec::new();
        for item in pattern::items(named) {
            let item = self.physical(by, &item)?.unwrap_or(item);
            if !pattern::is_valid_name(&item) {
                return Err(Refusal::Invalid(format!("'{item}' is no valid destination")).into());
            }
            if item.kind.is_temporary()
                && let Some(place) = self.find_place(&item).and_then(|key| self.places.get(key))
                && place.owner != Some(by)
            {
                let text = format!("'{item}' is another connection's temporary destination");
                return Err(Refusal::Unauthorized(text).into());
            }
            if !wanted.contains(&item) {
                wanted.push(item);
            }
        }
        match wanted.is_empty() {
            true => Err(Refusal::Invalid(format!("'{named}' names no destination")).into()),
            false => Ok(wanted),
        }
    }

    /// The places that a consumer wants and that exist; those it names are made.
    fn wanted_places(
        &mut self,
        by: ConnectionKey,
        wanted: &[Destination],
        call: &mut Call<'_>,
    ) -> Result<Vec<PlaceKey>, Stop> {
        let mut places = Vec::new();
        for wanted in wanted {
            if pattern::is_wildcard(wanted) {
                places.extend(self.matching(wanted));
            } else {
                places.push(self.find_or_make_place(wanted, Some(by), call)?);
            }
        }
        Ok(places)
    }

    fn insert_consumer(&mut self, consumer: Consumer) -> Result<ConsumerKey, Stop> {
        let (connection, number) = (consumer.connection, consumer.number);
        let wildcard = consumer.wanted.iter().any(pattern::is_wildcard);
        let waits = wildcard && !matches!(consumer.role, Role::Browser);
        let key = self.consumers.insert(Box::new(consumer));
        self.connection(connection)?.consumers.insert(number, key);
        if waits {
            self.waiting_for_names.insert(key);
        }
        Ok(key)
    }

    fn start_ordinary(&mut self, consumer: Consumer, call: &mut Call<'_>) -> Result<Outcome, Stop> {
        // Made before the consumer is, so that a refusal leaves nothing behind.
        let places = self.wanted_places(consumer.connection, &consumer.wanted, call)?;
        let key = self.insert_consumer(consumer)?;
        for place in places {
            self.attach(key, place);
        }
        Ok(Outcome::Done)
    }

    fn start_browser(&mut self, mut consumer: Consumer, call: &mut Call<'_>) -> Result<Outcome, Stop> {
        let places = self.wanted_places(consumer.connection, &consumer.wanted, call)?;
        let lines = places.iter().filter_map(|place| self.places.get(*place)?.queue).collect();
        let (step, matched) = (BrowseStep::Begin, VecDeque::new());
        let browse = Browse { lines, step, scanning: false, matched, scheduled: false, ended: false };
        consumer.browse = Some(Box::new(browse));
        let key = self.insert_consumer(consumer)?;
        self.browse(key, call)?;
        Ok(Outcome::Done)
    }

    /// A consumer takes part in a queue, or hears a topic.
    fn attach(&mut self, key: ConsumerKey, place_key: PlaceKey) {
        let Some(place) = self.places.get_mut(place_key) else { return };
        match place.queue {
            Some(line) => self.attach_to_line(key, line),
            None if place.subscribers.contains(&key) => {}
            None => {
                place.subscribers.push(key);
                if let Some(consumer) = self.consumers.get_mut(key) {
                    consumer.topics.push(place_key);
                }
            }
        }
    }

    fn attach_to_line(&mut self, key: ConsumerKey, line_key: LineKey) {
        let (Some(consumer), Some(line)) = (self.consumers.get_mut(key), self.lines.get_mut(line_key)) else {
            return;
        };
        if line.members_of_all_kinds().any(|member| member.consumer == key) {
            return;
        }
        let member = Member {
            consumer: key,
            priority: consumer.priority,
            exclusive: consumer.exclusive,
            several: consumer.several,
        };
        let selecting = (!consumer.filter.takes_all()).then(|| {
            self.selecting_last += 1;
            self.selecting_last
        });
        line.join(member, selecting);
        consumer.lines.push(line_key);
        if line.starved && consumer.several {
            consumer.starved.insert(line_key);
        }
        self.schedule(line_key);
    }

    fn start_durable(
        &mut self,
        consumer: Consumer,
        key: Arc<SubscriptionKey>,
        subscribe: &Subscribe,
        call: &mut Call<'_>,
    ) -> Result<Outcome, Stop> {
        let selector_text = consumer.filter.selector.as_ref().map(|selector| Text::from(selector.text()));
        let mut known = false;
        if let Some(durable) = self.durables.get(&key) {
            if durable.consumer.is_some() {
                return Err(Refusal::InUse(format!("durable subscription {} is in use", durable.key)).into());
            }
            known = durable.selector == selector_text
                && durable.no_local == subscribe.no_local
                && durable.subscribed == subscribe.destination;
        }
        // One that was there before is confirmed once it is sure to stay.
        let recovered_end = self.recovered_end;
        let mut end = (recovered_end > call.storage.committed()).then_some(recovered_end);
        if !known {
            // Found before anything is ended: a refusal leaves the old one as it was.
            let places = self.wanted_places(consumer.connection, &consumer.wanted, call)?;
            // Another selector is another subscription: what was kept for the old one is gone, as in ActiveMQ.
            end = end.max(self.end_durable(&key, call)?);
            let durable = Durable {
                key: Arc::clone(&key),
                wanted: consumer.wanted.clone(),
                subscribed: subscribe.destination.clone(),
                offline_filter: offline_filter(selector_text.as_ref()),
                selector: selector_text,
                no_local: subscribe.no_local,
                consumer: None,
                lines: Vec::new(),
            };
            self.durables.insert(Arc::clone(&key), durable);
            for place in places {
                end = end.max(self.extend_durable(&key, place, subscribe.retroactive, call)?);
            }
        }
        let consumer = self.insert_consumer(consumer)?;
        let Some(durable) = self.durables.get_mut(&key) else { return Ok(Outcome::Done) };
        durable.consumer = Some(consumer);
        let lines = durable.lines.clone();
        for line_key in lines {
            if let Some(line) = self.lines.get_mut(line_key) {
                // Who watched while nobody was there.
                line.selecting.clear();
                let committed = call.storage.committed();
                end = end.max((line.ready_at > committed).then_some(line.ready_at));
            }
            self.attach_to_line(consumer, line_key);
        }
        Ok(end.map_or(Outcome::Done, Outcome::At))
    }

    /// A durable subscription gets a topic.
    fn extend_durable(
        &mut self,
        key: &Arc<SubscriptionKey>,
        topic: PlaceKey,
        retroactive: bool,
        call: &mut Call<'_>,
    ) -> Result<Option<Lsn>, StorageError> {
        let Some(place) = self.places.get(topic) else { return Ok(None) };
        let (Some(stored_at), Some(durable)) = (place.stored_at, self.durables.get(key)) else {
            return Ok(None);
        };
        if durable.lines.iter().any(|line| self.lines.get(*line).is_some_and(|line| line.place == topic)) {
            return Ok(None);
        }
        let info = SubscriptionInfo {
            client_id: key.client_id.clone(),
            destination: place.name.clone(),
            selector: durable.selector.clone(),
            subscription_name: key.name.clone(),
            subscribed_destination: Some(durable.subscribed.clone()),
            no_local: durable.no_local,
        };
        let (consumer, end) = (durable.consumer, call.storage.subscribe(stored_at, &info, retroactive)?);
        *self.beginning.entry((stored_at, (**key).clone())).or_default() += 1;
        let line_key = self.insert_durable_line(topic, key);
        if let Some(line) = self.lines.get_mut(line_key) {
            line.ready_at = end;
            line.has_begun = false;
            line.rewind();
        }
        if let Some(durable) = self.durables.get_mut(key) {
            durable.lines.push(line_key);
        }
        match consumer {
            Some(consumer) => self.attach_to_line(consumer, line_key),
            None => self.watch_offline(line_key),
        }
        Ok(Some(end))
    }

    /// A new destination: consumers and durable subscriptions whose pattern it matches get it.
    pub(super) fn attach_those_who_wait(
        &mut self,
        key: PlaceKey,
        call: &mut Call<'_>,
    ) -> Result<(), StorageError> {
        let Some(name) = self.places.get(key).map(|place| place.name.clone()) else { return Ok(()) };
        let wants = |wanted: &[Destination]| wanted.iter().any(|wanted| pattern::matches(wanted, &name));
        let ordinary =
            self.waiting_for_names.iter().filter_map(|key| Some((*key, self.consumers.get(*key)?)));
        let ordinary: Vec<_> = ordinary
            .filter(|(_, consumer)| matches!(consumer.role, Role::Ordinary) && wants(&consumer.wanted))
            .map(|(key, _)| key)
            .collect();
        for consumer in ordinary {
            self.attach(consumer, key);
        }
        if name.kind == DestinationKind::Topic {
            let durables = self.durables.values().filter(|durable| wants(&durable.wanted));
            let durables: Vec<_> = durables.map(|durable| Arc::clone(&durable.key)).collect();
            for durable in durables {
                self.extend_durable(&durable, key, false, call)?;
            }
        }
        Ok(())
    }

    pub(super) fn unsubscribe(&mut self, by: ConnectionKey, number: ConsumerNumber) -> Result<Outcome, Stop> {
        let connection = self.connection(by)?;
        connection.consumer_last = None;
        let Some(key) = connection.consumers.remove(&number) else {
            return Err(Refusal::NotFound(format!("there is no consumer {}", number.0)).into());
        };
        self.close_consumer(key);
        Ok(Outcome::Done)
    }

    /// A consumer is gone; what it had and did not acknowledge returns, except for what is part of an open transaction.
    /// Whoever calls takes it off its connection.
    pub(super) fn close_consumer(&mut self, key: ConsumerKey) {
        let Some(consumer) = self.consumers.remove(key) else { return };
        let consumer = *consumer;
        self.waiting_for_names.remove(&key);
        for topic in consumer.topics {
            if let Some(place) = self.places.get_mut(topic) {
                place.subscribers.retain(|subscriber| *subscriber != key);
            }
        }
        for line_key in consumer.lines {
            if let Some(line) = self.lines.get_mut(line_key) {
                line.leave(key);
                // The others may have room.
                line.starved = false;
                self.schedule(line_key);
            }
        }
        for out in consumer.deliveries.iter() {
            match out.from {
                Origin::Line(line, slot) if out.state == OutState::Unacknowledged => {
                    self.return_to_line(line, slot);
                }
                Origin::Topic(message) => self.memory.release(message),
                Origin::Line(..) | Origin::Browsed => {}
            }
        }
        for (message, _) in consumer.backlog {
            self.memory.release(message);
        }
        if let Some(browse) = consumer.browse
            && let BrowseStep::Held { messages } = browse.step
        {
            for message in messages {
                self.memory.release(message);
            }
        }
        if let Role::Durable(subscription) = &consumer.role
            && let Some(durable) = self.durables.get_mut(subscription)
        {
            durable.consumer = None;
            for line in durable.lines.clone() {
                self.watch_offline(line);
            }
        }
    }

    pub(super) fn remove_subscription(
        &mut self,
        by: ConnectionKey,
        name: Text,
        call: &mut Call<'_>,
    ) -> Result<Outcome, Stop> {
        let Some(client_id) = self.connection(by)?.info.client_id.clone() else {
            return Err(Refusal::Invalid("durable subscriptions need a client id".into()).into());
        };
        let key = SubscriptionKey { client_id, name };
        let Some(durable) = self.durables.get(&key) else {
            return Err(Refusal::NotFound(format!("there is no durable subscription {}", key.name)).into());
        };
        if durable.consumer.is_some() {
            return Err(Refusal::InUse(format!("durable subscription {} is in use", key.name)).into());
        }
        let key = Arc::clone(&durable.key);
        let end = self.end_durable(&key, call)?;
        Ok(end.map_or(Outcome::Done, Outcome::At))
    }

    fn end_durable(
        &mut self,
        key: &Arc<SubscriptionKey>,
        call: &mut Call<'_>,
    ) -> Result<Option<Lsn>, StorageError> {
        let Some(durable) = self.durables.remove(key) else { return Ok(None) };
        let mut end = None;
        for line_key in durable.lines {
            if let Some(stored_at) = self.lines.get(line_key).and_then(|line| line.stored_at) {
                end = end.max(Some(call.storage.unsubscribe(stored_at, key)?));
            }
            self.remove_line(line_key, &mut Vec::new());
        }
        Ok(end)
    }
}

fn parse_selector(text: Option<&Text>) -> Result<Option<Arc<Selector>>, Stop> {
    match text.map(|text| text.trim()) {
        None | Some("") => Ok(None),
        Some(text) => match Selector::parse(text) {
            Ok(selector) => Ok(Some(Arc::new(selector))),
            Err(error) => Err(Refusal::Selector(error.to_string()).into()),
        },
    }
}
