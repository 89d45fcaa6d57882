//! Protocol buffers, as far as a SentencePiece model needs them: fields of a message, one after the other.
//!
//! A field is a varint `number * 8 + wire type`, then: type 0 a varint, 1 eight bytes, 2 a varint length and that many
//! bytes, 5 four bytes. A varint has seven bits a byte, the lowest first; the top bit says that more follow.

/// A field's value. Offsets are those in the file, for messages.
pub(super) enum Field<'a> {
    Varint(u64),
    Fixed64,
    Bytes(usize, &'a [u8]),
    Fixed32([u8; 4]),
}

/// Where something is wrong, and what.
pub(super) type Fault = (usize, &'static str);

/// The fields of one message; ends after the first fault.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// The message `bytes`, which starts at offset `at` of the file.
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { rest: bytes, at }
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], Fault> {
        let split = usize::try_from(count)
            .ok()
            .and_then(|count| self.rest.split_at_checked(count));
        let (taken, rest) = split.ok_or((self.at, "a field goes past the end of its message"))?;
        self.rest = rest;
        self.at += taken.len();
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let start = self.at;
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err((start, "a varint does not fit 64 bits"))
    }

    fn field(&mut self) -> Result<(u64, Field<'a>), Fault> {
        let start = self.at;
        let tag = self.varint()?;
        let value = match tag % 8 {
            0 => Field::Varint(self.varint()?),
            1 => self.take(8).map(|_| Field::Fixed64)?,
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.at, self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Fixed32([bytes[0], bytes[1], bytes[2], bytes[3]])
            }
            _ => return Err((start, "a field has an unknown wire type")),
        };
        Ok((tag / 8, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}
