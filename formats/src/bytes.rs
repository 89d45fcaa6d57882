//! A checked little-endian cursor over bytes: every length is compared with what is left before it is used.

use crate::FormatError;

/// Reads forward through `bytes`; every error names what was being read and where.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes from the start.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// Bytes left.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `need` bytes.
    pub(crate) fn take(&mut self, need: u64, what: &str) -> Result<&'a [u8], FormatError> {
        let truncated = || FormatError::Truncated {
            what: what.into(),
            at: self.at as u64,
            need,
            end: self.bytes.len() as u64,
        };
        if need > self.remaining() as u64 {
            return Err(truncated());
        }
        let (taken, _) = self.bytes[self.at..].split_at(need as usize);
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, FormatError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, FormatError> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self, what: &str) -> Result<i64, FormatError> {
        self.array(what).map(i64::from_le_bytes)
    }

    /// A u64 length, at most 1 GiB as in ggml (gguf.cpp), and that many bytes of UTF-8.
    pub(crate) fn string(&mut self, what: &str) -> Result<String, FormatError> {
        const MAX: u64 = 1 << 30;
        let length = self.u64(what)?;
        if length > MAX {
            return Err(FormatError::Limit {
                what: format!("the length of {what}"),
                found: length,
                max: MAX,
            });
        }
        let bytes = self.take(length, what)?;
        // Copied, then checked: another process may write the bytes of a map at any time.
        String::from_utf8(bytes.to_vec()).map_err(|_| FormatError::Utf8 { what: what.into() })
    }
}
