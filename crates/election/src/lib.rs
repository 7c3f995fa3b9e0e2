//! Who may be primary and under which epoch, decided over one versioned cluster record.
