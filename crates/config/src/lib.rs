//! Typed settings, and the import of ActiveMQ's XML files.
