//! A checked little-endian cursor over bytes.
