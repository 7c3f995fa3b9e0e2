//! Primary and replica machines: in-sync set, commit position, log matching, catch-up, bulk synchronisation.
