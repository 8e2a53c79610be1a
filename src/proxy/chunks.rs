//! Where a body in chunks ends (RFC 9112 section 7.1). Pure.
//!
//! Takes nothing that hyper does not take, and so both see the same end: CR LF and only that ends a line, a size is digits and nothing before them.

/// Most digits of a chunk's size: far more than any body, far less than overflows.
const MAX_DIGITS: u8 = 15;

/// Most bytes of all chunk extensions of a body; nobody sends any.
const MAX_EXTENSIONS: usize = 4 * 1024;

/// Most bytes of the trailers; they are read and forgotten.
const MAX_TRAILERS: usize = 8 * 1024;

/// A body that is not in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body's chunks are malformed")]
pub struct BadChunks;

/// How far a body has come.
#[derive(Debug)]
pub struct Chunks {
    at: At,
    extensions: usize,
    trailers: usize,
}

#[derive(Debug, Clone, Copy)]
enum At {
    Size { digits: u8, size: u64 },
    Extension { size: u64 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    End,
}

impl Default for Chunks {
    fn default() -> Self {
        Self { at: At::Size { digits: 0, size: 0 }, extensions: 0, trailers: 0 }
    }
}

impl Chunks {
    /// How many of these bytes belong to the body: all, or those up to its end.
    ///
    /// # Errors
    /// What is not a body in chunks.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, BadChunks> {
        let mut taken = 0;
        while let (false, Some(&byte)) = (self.is_whole(), bytes.get(taken)) {
            if let At::Data { left } = &mut self.at {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - taken);
                taken += here;
                *left -= here as u64;
                if *left == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            self.at = self.next(byte).ok_or(BadChunks)?;
            taken += 1;
        }
        Ok(taken)
    }

    /// Whether the end was there.
    pub fn is_whole(&self) -> bool {
        matches!(self.at, At::End)
    }

    fn next(&mut self, byte: u8) -> Option<At> {
        match (self.at, byte) {
            (At::Size { digits, size }, _) if byte.is_ascii_hexdigit() && digits < MAX_DIGITS => {
                let digit = char::from(byte).to_digit(16)?;
                Some(At::Size { digits: digits + 1, size: size * 16 + u64::from(digit) })
            }
            (At::Size { digits: 1.., size }, b';') => Some(At::Extension { size }),
            (At::Size { digits: 1.., size } | At::Extension { size }, b'\r') => Some(At::SizeLf { size }),
            (At::Extension { .. }, b' '..=b'~' | b'\t') => {
                self.extensions += 1;
                (self.extensions <= MAX_EXTENSIONS).then_some(self.at)
            }
            (At::SizeLf { size: 0 }, b'\n') => Some(At::TrailerStart),
            (At::SizeLf { size }, b'\n') => Some(At::Data { left: size }),
            (At::DataCr, b'\r') => Some(At::DataLf),
            (At::DataLf, b'\n') => Some(At::Size { digits: 0, size: 0 }),
            (At::TrailerStart, b'\r') => Some(At::EndLf),
            (At::Trailer, b'\r') => Some(At::TrailerLf),
            (At::TrailerStart | At::Trailer, b' '..=b'~' | b'\t' | 0x80..) => {
                self.trailers += 1;
                (self.trailers <= MAX_TRAILERS).then_some(At::Trailer)
            }
            (At::TrailerLf, b'\n') => Some(At::TrailerStart),
            (At::EndLf, b'\n') => Some(At::End),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"3\r\none\r\nA;name=\"value\"\r\n0123456789\r\n000\r\nTrailer: x\r\n\r\n";

    #[test]
    fn a_body_ends_with_its_last_chunk_whatever_its_pieces() {
        let bytes = [BODY, b"GET / HTTP/1.1\r\n"].concat();
        for step in 1..bytes.len() {
            let mut chunks = Chunks::default();
            let taken: usize = bytes.chunks(step).map(|piece| chunks.take(piece).unwrap()).sum();
            assert_eq!((taken, chunks.is_whole()), (BODY.len(), true), "in steps of {step}");
        }
    }

    #[test]
    fn no_start_of_a_body_is_a_whole_one() {
        for end in 0..BODY.len() {
            let mut chunks = Chunks::default();
            assert_eq!(chunks.take(&BODY[..end]), Ok(end));
            assert!(!chunks.is_whole());
        }
    }

    #[test]
    fn what_another_server_could_read_otherwise_is_no_body() {
        for body in [
            "3\none\r\n0\r\n\r\n",
            "3\r\none\n0\r\n\r\n",
            "3\r\none0\r\n\r\n",
            "3\r\none\r\n0\n\r\n",
            "3\r\none\r\n0\r\n\n",
            "3\r\none\r\n0\r\nA: b\n\r\n",
            "3\rXone\r\n0\r\n\r\n",
            "3 \r\none\r\n0\r\n\r\n",
            " 3\r\none\r\n0\r\n\r\n",
            "+3\r\none\r\n0\r\n\r\n",
            "0x3\r\none\r\n0\r\n\r\n",
            "\r\n",
            ";a\r\n",
            "3;a\nb\r\none\r\n0\r\n\r\n",
            "3;\0\r\none\r\n0\r\n\r\n",
            "ffffffffffffffff\r\n",
            "10000000000000000\r\n",
            "0\r\nA: \0\r\n\r\n",
        ] {
            assert_eq!(Chunks::default().take(body.as_bytes()), Err(BadChunks), "{body:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let mut chunks = Chunks::default();
        let mut pieces = std::iter::repeat(format!("1;{}\r\nx\r\n", "a".repeat(1_000)));
        assert!(pieces.by_ref().take(MAX_EXTENSIONS / 1_000).all(|piece| chunks.take(piece.as_bytes()).is_ok()));
        assert_eq!(chunks.take(pieces.next().unwrap().as_bytes()), Err(BadChunks));
        let mut chunks = Chunks::default();
        assert!(chunks.take(b"0\r\n").is_ok());
        assert_eq!(chunks.take("A: b\r\n".repeat(MAX_TRAILERS / 4 + 1).as_bytes()), Err(BadChunks));
    }
}
