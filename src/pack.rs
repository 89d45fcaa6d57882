//! Plan every byte, then write.
