//! What must never be, by the numbers of the protocol's invariants.

/// An invariant of the replication protocol.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Invariant {
    /// An epoch has one primary and one marker.
    I1,
    /// Equal position and epoch mean equal journals.
    I3,
    /// A promise is not taken back.
    I4,
    /// A confirmation rests on flushes of the whole set, and on the reign's own marker.
    I5,
    /// Every member of the recorded set has everything that was confirmed.
    I6,
    /// The commit position does not go back, and all confirmed histories are one.
    I9,
    /// Committed, flushed, written: in this order.
    I10,
    /// Nothing known to be confirmed is cut.
    I11,
    /// The set does not shrink below the minimum, and holds the primary.
    I12,
    /// While a proposal has no answer, both sets are waited for.
    I13,
    /// Who is not in the set does not lead.
    I14,
    /// No machine finds itself in a state that it holds for impossible.
    Panic,
}

/// What is wrong, in words.
pub(crate) type Broken = (Invariant, String);

pub(crate) type Outcome = Result<(), Broken>;

pub(crate) fn ensure(holds: bool, invariant: Invariant, what: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err((invariant, what())) }
}

/// One property for each invariant, and the name of each.
macro_rules! invariants {
    ($model:ty: $($invariant:ident $name:literal),* $(,)?) => {
        vec![$(
            stateright::Property::<$model>::always($name, |_, state| {
                state.broken.as_ref().is_none_or(|(broken, _)| *broken != $crate::Invariant::$invariant)
            }),
        )*]
    };
}
pub(crate) use invariants;
