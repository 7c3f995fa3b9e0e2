/// What one frame may be. Checked before we wait for more of it, so a peer cannot make us buffer what we would refuse.
///
/// The defaults are ActiveMQ's where it has one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of the command line.
    pub command_bytes_max: usize,
    /// Bytes of one header line.
    pub header_bytes_max: usize,
    /// How many headers.
    pub headers_max: usize,
    /// Bytes of command and headers together.
    pub head_bytes_max: usize,
    /// Bytes of the body.
    pub body_bytes_max: usize,
    /// Bytes of the whole frame.
    pub frame_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            command_bytes_max: 1024,
            header_bytes_max: 10 << 10,
            headers_max: 1000,
            head_bytes_max: 1 << 20,
            body_bytes_max: 100 << 20,
            frame_bytes_max: usize::MAX,
        }
    }
}
