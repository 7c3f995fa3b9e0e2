//! A client that looks at a queue now and then, and takes nothing.

use super::{Desk, Line, Next, Waits};
use crate::history::{Kind, Seen};
use crate::wire::{Ask, Delivered, Wanted};

/// An answer that is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked {
    Subscribe,
    Unsubscribe,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Off,
    Looking,
    Ending,
}

#[derive(Debug)]
pub(super) struct Browser {
    wanted: Wanted,
    number: u32,
    state: State,
}

impl Browser {
    pub(super) fn new(wanted: Wanted) -> Self {
        Self { wanted, number: 0, state: State::Off }
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == State::Off
    }

    /// Does what may be done now.
    pub(super) fn act(&mut self, line: &mut Line, desk: &mut Desk<'_>) -> Next {
        if self.state == State::Off && !desk.quiesced {
            self.number += 1;
            self.state = State::Looking;
            let (consumer, wanted) = (self.number, self.wanted);
            let waits = Waits::Browser(Asked::Subscribe);
            line.ask(desk, Kind::Subscribe(wanted), waits, |op| Ask::Subscribe { op, consumer, wanted });
        }
        Next::Stay(None)
    }

    pub(super) fn delivered(&self, line: &Line, desk: &mut Desk<'_>, delivered: Delivered) {
        if delivered.consumer == self.number {
            let (client, reign, left_after) = (line.id, line.reign, line.left_after);
            desk.history.delivered(&Seen { client, reign, wanted: self.wanted, delivered, left_after });
        }
    }

    /// It has seen everything.
    pub(super) fn ended(&mut self, line: &mut Line, desk: &mut Desk<'_>, consumer: u32) {
        if consumer == self.number && self.state == State::Looking {
            self.state = State::Ending;
            let waits = Waits::Browser(Asked::Unsubscribe);
            line.ask(desk, Kind::Other, waits, |op| Ask::Unsubscribe { op, consumer });
        }
    }

    /// `false` = it gives up the connection.
    pub(super) fn answered(
        &mut self,
        line: &mut Line,
        desk: &mut Desk<'_>,
        asked: Asked,
        is_done: bool,
    ) -> bool {
        if let Asked::Unsubscribe = asked {
            self.state = State::Off;
            let delay = line.pause(10 * desk.shape.pause_us);
            line.wake_in(desk, delay);
        }
        is_done
    }

    pub(super) fn lost(&mut self) {
        self.state = State::Off;
    }
}
