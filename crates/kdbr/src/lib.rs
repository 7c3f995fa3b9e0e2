//! Replication frames: the original messages and our extensions, and the handshake.
