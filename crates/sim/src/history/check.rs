//! What must never be seen in a history, one function for each rule.

use kahawai_message::storage::Tier;

use super::{
    CopyRecord, DeliveryId, Fate, History, Kind, LineRecord, MessageRecord, NONE, Outcome, Seen, Stand,
    TransactionId,
};
use crate::Violation;
use crate::wire::{CopyId, Place};

type Found = Result<(), Violation>;

fn violation(rule: &str, what: std::fmt::Arguments<'_>) -> Violation {
    Violation(format!("{rule}: {what}"))
}

/// A delivery with what is known of its message.
struct Known<'a> {
    seen: &'a Seen,
    copy: &'a CopyRecord,
    message: &'a MessageRecord,
    /// `None` for a topic's plain subscriber.
    stand: Option<&'a Stand>,
}

/// What can be told when a message comes, before it is noted.
pub(super) fn delivered(history: &History, seen: &Seen) -> Found {
    let copy = seen.delivered.copy.and_then(|copy| history.copies.get(copy.0 as usize));
    let Some(copy) = copy else {
        let client = seen.client.0;
        return Err(violation("invention", format_args!("client {client} got what nobody sent: {seen:?}")));
    };
    let message = &history.messages[copy.message as usize];
    let stand = history.stands.get(history.stand_of(copy, &seen.wanted) as usize);
    let known = Known { seen, copy, message, stand };
    let checks: [fn(&History, &Known<'_>) -> Found; 8] = [
        is_as_it_was_sent,
        is_committed,
        is_not_consumed_yet,
        is_stored_once,
        says_how_often_it_came,
        is_in_order,
        was_sent_after_the_subscription_began,
        is_dead_or_alive,
    ];
    checks.iter().try_for_each(|check| check(history, &known))
}

fn told(history: &History, known: &Known<'_>) -> String {
    let Known { seen, copy, message, .. } = known;
    let operation = history.operations.get(copy.operation as usize);
    let sent = operation.map_or(0, |operation| operation.asked_at);
    let content = &message.content;
    format!(
        "client {} got message {} of producer {} (copy {}, sent at {sent} us) from {:?} of reign {}, delivery {} of it, at {} us",
        seen.client.0,
        content.number,
        content.producer,
        seen.delivered.copy.map_or(0, |copy| copy.0),
        seen.delivered.place,
        seen.reign,
        seen.delivered.redelivery + 1,
        history.now,
    )
}

/// No inventions: what comes is what was sent, where it was sent, and what was asked for.
fn is_as_it_was_sent(history: &History, known: &Known<'_>) -> Found {
    let (seen, content) = (known.seen, &known.message.content);
    let delivered = &seen.delivered;
    let is_same = delivered.traits == (content.colour, content.persistent, content.priority)
        && delivered.sent_to == content.place;
    let is_here = delivered.place == seen.wanted.place
        && (delivered.place == content.place || delivered.place == Place::Dead);
    let is_wanted = seen.wanted.colour.is_none_or(|colour| colour == content.colour);
    match is_same && is_here && is_wanted {
        true => Ok(()),
        false => {
            let told = told(history, known);
            Err(violation("invention", format_args!("{told}, which was sent as {content:?}")))
        }
    }
}

/// Nothing is seen that was refused, or whose transaction was not asked to commit, or was undone.
fn is_committed(history: &History, known: &Known<'_>) -> Found {
    let operation = history.operations.get(known.copy.operation as usize);
    if operation.is_none_or(|operation| operation.outcome == Outcome::Refused) {
        let told = told(history, known);
        return Err(violation("invention", format_args!("{told}, whose send was refused")));
    }
    match history.transactions.get(known.copy.transaction as usize).map(|record| record.fate) {
        None | Some(Fate::Asked | Fate::Committed) => Ok(()),
        Some(fate @ (Fate::Open | Fate::Undone)) => {
            let told = told(history, known);
            Err(violation("uncommitted", format_args!("{told}, of a transaction that is {fate:?}")))
        }
    }
}

/// Nothing comes after its acknowledgement was confirmed.
fn is_not_consumed_yet(history: &History, known: &Known<'_>) -> Found {
    let Some(stand) = known.stand else { return Ok(()) };
    match stand.settled > 0 && known.seen.left_after > stand.settled {
        false => Ok(()),
        true => {
            let told = told(history, known);
            let settled = stand.settled;
            let after = known.seen.left_after;
            Err(violation(
                "acknowledged",
                format_args!("{told}, consumed since step {settled}, and it left after step {after}"),
            ))
        }
    }
}

/// Of a message with a number, only one copy is ever stored.
fn is_stored_once(history: &History, known: &Known<'_>) -> Found {
    let message = known.message;
    if !message.is_guarded || message.copy_first == message.copy_last {
        return Ok(());
    }
    for (id, copy) in copies(history, message) {
        if Some(id) != known.seen.delivered.copy && copy.seen > 0 {
            let told = told(history, known);
            return Err(violation("duplicate", format_args!("{told}, and copy {} was seen too", id.0)));
        }
    }
    Ok(())
}

/// Within a reign, no two deliveries of a message say the same number of deliveries before them.
fn says_how_often_it_came(history: &History, known: &Known<'_>) -> Found {
    let Some(stand) = known.stand else { return Ok(()) };
    let delivered = &known.seen.delivered;
    if delivered.place == Place::Dead || stand.reign != known.seen.reign {
        return Ok(());
    }
    match stand.counts & 1u64.checked_shl(delivered.redelivery).unwrap_or(0) {
        0 => Ok(()),
        _ => {
            let told = told(history, known);
            Err(violation("redelivery", format_args!("{told}, and one before said the same")))
        }
    }
}

/// Which deliveries have an order among each other: first ones, of one producer and delivery mode, in one tier.
pub(super) fn order_class(history: &History, seen: &Seen, copy: &CopyRecord) -> Option<(u32, bool, u8)> {
    let message = &history.messages[copy.message as usize];
    let content = &message.content;
    let is_alone = message.copy_first == message.copy_last;
    let is_transacted = copy.transaction != NONE;
    let is_steady = match (seen.wanted.place, seen.wanted.durable) {
        // A plain subscriber hears at once what is not stored, and later what is.
        (Place::Topic(_), None) => !is_transacted && (message.is_guarded || !content.persistent),
        // What was sent before the subscription was there may reach it, from memory, after what came later.
        (Place::Topic(_), Some(durable)) => {
            let first = history.copies.get(message.copy_first as usize);
            first.is_some_and(|first| {
                meant_for(history, message, first).any(|line| line == u32::from(durable))
            })
        }
        (Place::Queue(_) | Place::Dead, _) => true,
    };
    let has_order = seen.delivered.redelivery == 0
        && !seen.wanted.browser
        && seen.delivered.place != Place::Dead
        && is_steady
        && (message.is_guarded || is_alone)
        && (content.persistent || !is_transacted);
    let tier = Tier::of(content.priority, content.place == Place::Queue(0)) as u8;
    has_order.then_some((content.producer, content.persistent, tier))
}

/// First deliveries on one connection ascend for each producer.
fn is_in_order(history: &History, known: &Known<'_>) -> Found {
    let Some(class) = order_class(history, known.seen, known.copy) else { return Ok(()) };
    let order = history.order.get(known.seen.client.0 as usize);
    let last = order.and_then(|order| order.iter().find(|last| last.class == class));
    match last {
        Some(last) if last.number >= known.message.content.number => {
            let told = told(history, known);
            Err(violation("order", format_args!("{told}, after number {}", last.number)))
        }
        _ => Ok(()),
    }
}

/// A durable subscription gets nothing that was confirmed before it was asked for.
fn was_sent_after_the_subscription_began(history: &History, known: &Known<'_>) -> Found {
    let (Place::Topic(topic), Some(durable)) = (known.seen.wanted.place, known.seen.wanted.durable) else {
        return Ok(());
    };
    let Some(line) = history.current_line(topic, durable).filter(|line| !line.may_inherit) else {
        return Ok(());
    };
    let confirmed = match history.transactions.get(known.copy.transaction as usize) {
        Some(transaction) => transaction.committed,
        None => match history.operations.get(known.copy.operation as usize) {
            Some(operation) if operation.outcome == Outcome::Ok => operation.ended,
            _ => 0,
        },
    };
    match confirmed > 0 && confirmed < line.asked {
        false => Ok(()),
        true => {
            let told = told(history, known);
            let asked = line.asked;
            Err(violation(
                "subscription",
                format_args!(
                    "{told}, confirmed at step {confirmed}, before the subscription at step {asked}"
                ),
            ))
        }
    }
}

/// Dead letters were refused by somebody or have expired, and do not come back.
fn is_dead_or_alive(history: &History, known: &Known<'_>) -> Found {
    let Some(stand) = known.stand else { return Ok(()) };
    let is_dead = known.seen.delivered.place == Place::Dead;
    if is_dead && !stand.rejected && known.message.content.lives_ms == 0 {
        let told = told(history, known);
        return Err(violation("dead letter", format_args!("{told}, which nobody refused and cannot expire")));
    }
    if !is_dead && stand.dead > 0 && known.seen.left_after > stand.dead {
        let told = told(history, known);
        return Err(violation(
            "dead letter",
            format_args!("{told}, which was among the dead letters before"),
        ));
    }
    Ok(())
}

/// An acknowledgement is confirmed: no other of the same message may have been.
pub(super) fn settled(history: &mut History, delivery: DeliveryId) {
    let record = &history.deliveries[delivery.0 as usize];
    let Some(stand) = history.stands.get(record.stand as usize) else { return };
    if stand.settled > 0 && stand.by != Some(delivery) {
        let (copy, now) = (record.copy.0, history.now);
        let found = violation("duplicate", format_args!("copy {copy} was consumed twice, again at {now} us"));
        history.found(found);
    }
}

/// What a transaction did is all there or not at all, as far as it has been seen.
pub(super) fn transaction_changed(history: &mut History, id: TransactionId) {
    let transaction = &history.transactions[id.0 as usize];
    let (seen, back, now) = (transaction.seen, transaction.back, history.now);
    let client = transaction.client.0;
    let found = match transaction.fate {
        Fate::Undone if seen > 0 && back > 0 => violation(
            "atomicity",
            format_args!(
                "transaction {} of client {client}: a message that it sent was seen at step {seen}, one that it acknowledged \
                 came again at step {back} ({now} us)",
                id.0
            ),
        ),
        Fate::Committed if back > 0 => violation(
            "atomicity",
            format_args!(
                "transaction {} of client {client} is committed, and a message that it acknowledged came again at step {back} \
                 ({now} us)",
                id.0
            ),
        ),
        _ => return,
    };
    history.found(found);
}

/// What can be told when everything is drained.
pub(super) fn at_end(history: &History) -> Found {
    transactions_are_whole(history)?;
    nothing_is_lost(history)?;
    memory_was_kept(history)
}

fn copies<'a>(
    history: &'a History,
    message: &MessageRecord,
) -> impl Iterator<Item = (CopyId, &'a CopyRecord)> {
    let mut next = message.copy_first;
    std::iter::from_fn(move || {
        let copy = history.copies.get(next as usize)?;
        let id = CopyId(next);
        next = copy.next;
        Some((id, copy))
    })
}

/// Is this copy surely in the committed journal (or was there, if it was persistent)?
fn is_kept(history: &History, copy: &CopyRecord) -> bool {
    let outcome = history.operations.get(copy.operation as usize).map(|operation| operation.outcome);
    let is_confirmed = match history.transactions.get(copy.transaction as usize) {
        None => outcome == Some(Outcome::Ok),
        Some(transaction) => transaction.fate == Fate::Committed && outcome != Some(Outcome::Refused),
    };
    is_confirmed || copy.seen > 0
}

fn is_consumed(history: &History, stand: u32) -> bool {
    let stand = history.stands.get(stand as usize);
    stand.is_some_and(|stand| stand.settled > 0 || stand.may_be_settled)
}

/// The durable subscriptions that surely get what is first sent as `copy`, by number; for a queue, 0.
fn meant_for(history: &History, message: &MessageRecord, copy: &CopyRecord) -> impl Iterator<Item = u32> {
    let asked = history.operations.get(copy.operation as usize).map_or(0, |operation| operation.asked);
    let content = message.content;
    let lines: &[Vec<LineRecord>] = match content.place {
        Place::Topic(topic) => {
            let first = history.lives(topic, 0);
            let last = first + usize::from(history.layout.durables);
            history.lines.get(first..last).unwrap_or_default()
        }
        Place::Queue(_) | Place::Dead => &[],
    };
    let durables = lines.iter().enumerate().filter_map(move |(number, lives)| {
        let line = lives.last()?;
        let is_there = line.confirmed > 0 && line.confirmed < asked && line.end_asked == 0;
        let is_wanted = line.colour.is_none_or(|colour| colour == content.colour);
        (is_there && is_wanted).then_some(number as u32)
    });
    let queue = (!matches!(content.place, Place::Topic(_))).then_some(0);
    queue.into_iter().chain(durables)
}

fn missing(history: &History, rule: &str, message: &MessageRecord, line: u32) -> Violation {
    let mut text = format!("{:?} was kept and never consumed by {line}; copies:", message.content);
    for (id, copy) in copies(history, message) {
        let operation = history.operations.get(copy.operation as usize);
        let (outcome, asked_at, node) = operation.map_or((Outcome::Open, 0, 0), |operation| {
            (operation.outcome, operation.asked_at, operation.node)
        });
        let fate = history.transactions.get(copy.transaction as usize).map(|transaction| transaction.fate);
        text += &format!(" {} sent to node {node} at {asked_at} us: {outcome:?}", id.0);
        if let Some(fate) = fate {
            text += &format!(" in a transaction that is {fate:?}");
        }
        if copy.seen > 0 {
            text += &format!(", seen at step {}", copy.seen);
        }
        text.push(';');
    }
    Violation(format!("{rule}: {text}"))
}

/// Who should have consumed a message that is surely kept, and has not.
fn lacks(history: &History, message: &MessageRecord) -> Option<u32> {
    if message.content.numbered && message.content.persistent {
        // Any copy may be the one that was stored: also of what was repeated to a topic that had no subscription first.
        copies(history, message).find(|(_, copy)| is_kept(history, copy))?;
        let (_, first) = copies(history, message).next()?;
        return meant_for(history, message, first).find(|line| {
            copies(history, message).all(|(_, copy)| !is_consumed(history, copy.stands + line))
        });
    }
    copies(history, message).filter(|(_, copy)| is_kept(history, copy)).find_map(|(_, copy)| {
        meant_for(history, message, copy).find(|line| !is_consumed(history, copy.stands + line))
    })
}

/// A transaction of which something was seen is there as a whole.
fn transactions_are_whole(history: &History) -> Found {
    for transaction in history.transactions.iter().filter(|transaction| transaction.seen > 0) {
        for copy in &transaction.sends {
            let copy = &history.copies[copy.0 as usize];
            let message = &history.messages[copy.message as usize];
            if message.content.persistent
                && let Some(line) = lacks(history, message)
            {
                return Err(missing(history, "atomicity", message, line));
            }
        }
    }
    Ok(())
}

/// Every persistent message that was confirmed, or seen, was consumed by those it was meant for.
fn nothing_is_lost(history: &History) -> Found {
    for message in history.messages.iter().filter(|message| message.content.persistent) {
        if let Some(line) = lacks(history, message) {
            return Err(missing(history, "lost", message, line));
        }
    }
    Ok(())
}

/// A non-persistent message in a queue is there as long as the broker that confirmed it.
fn memory_was_kept(history: &History) -> Found {
    for message in &history.messages {
        let content = &message.content;
        if content.persistent || content.lives_ms > 0 || matches!(content.place, Place::Topic(_)) {
            continue;
        }
        for (_, copy) in copies(history, message) {
            let Some(operation) = history.operations.get(copy.operation as usize) else { continue };
            let is_refused = history.stands.get(copy.stands as usize).is_some_and(|stand| stand.rejected);
            if matches!(operation.kind, Kind::Send(_))
                && operation.reign == history.reign_last
                && is_kept(history, copy)
                && !is_refused
                && !is_consumed(history, copy.stands)
            {
                return Err(missing(history, "lost from memory", message, 0));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
