//! The cluster record kept in ZooKeeper.
