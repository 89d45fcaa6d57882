//! The one memory map.
