//! Cuts a byte stream into protocol messages without keeping them.

/// The most of a message body that is kept for the reader: error reports with a long detail fit.
const MOST_KEPT: usize = 8 * 1024;

/// One direction of the stream: remembers where inside a message the last chunk ended.
#[derive(Debug)]
pub(super) struct Frames {
    header: [u8; 5],
    have: usize,
    /// Body bytes of the current message that are still to come.
    rest: usize,
    kind: u8,
    wanted: usize,
    body: Vec<u8>,
    untyped: bool,
}

impl Frames {
    /// `untyped`: the first message has no type byte, as the client's start-up packet.
    pub(super) fn new(untyped: bool) -> Self {
        Self { header: [0; 5], have: 0, rest: 0, kind: 0, wanted: 0, body: Vec::new(), untyped }
    }

    /// Calls `see(kind, body)` once for every message that ends inside `chunk`, with as much of its body as
    /// `want(kind)` asks for. A message without a type byte has kind 0.
    pub(super) fn feed(&mut self, mut chunk: &[u8], want: impl Fn(u8) -> usize, mut see: impl FnMut(u8, &[u8])) {
        while !chunk.is_empty() {
            if self.rest == 0 {
                let size = if self.untyped { 4 } else { 5 };
                let header = if self.have == 0 && chunk.len() >= size {
                    // The common case, a header that lies whole in the chunk, is read where it lies.
                    let (header, rest) = chunk.split_at(size);
                    chunk = rest;
                    header
                } else {
                    let taken = (size - self.have).min(chunk.len());
                    self.header[self.have..self.have + taken].copy_from_slice(&chunk[..taken]);
                    self.have += taken;
                    chunk = &chunk[taken..];
                    if self.have < size {
                        return;
                    }
                    self.have = 0;
                    &self.header[..size]
                };
                let [.., a, b, c, d] = *header else { return };
                self.kind = if self.untyped { 0 } else { header[0] };
                self.untyped = false;
                self.rest = (u32::from_be_bytes([a, b, c, d]) as usize).saturating_sub(4);
                self.wanted = want(self.kind).min(self.rest).min(MOST_KEPT);
                if self.rest == 0 {
                    see(self.kind, &[]);
                }
                continue;
            }
            let taken = self.rest.min(chunk.len());
            // The common case, a body that lies whole in the chunk, is shown where it lies.
            if taken == self.rest && self.body.is_empty() {
                see(self.kind, &chunk[..self.wanted]);
            } else {
                let missing = self.wanted.saturating_sub(self.body.len()).min(taken);
                self.body.extend_from_slice(&chunk[..missing]);
                if taken == self.rest {
                    see(self.kind, &self.body);
                    self.body.clear();
                }
            }
            self.rest -= taken;
            chunk = &chunk[taken..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[kind][..], &length.to_be_bytes(), body].concat()
    }

    #[test]
    fn every_split_of_the_stream_shows_the_same_messages() {
        let stream =
            [message(b'C', b"COMMIT\0"), message(b'1', b""), message(b'D', &[7; 300]), message(b'Z', b"I")].concat();
        let expected = vec![(b'C', b"COMMIT\0".to_vec()), (b'1', vec![]), (b'D', vec![7; 10]), (b'Z', b"I".to_vec())];
        for size in 1..stream.len() {
            let (mut frames, mut seen) = (Frames::new(false), Vec::new());
            for chunk in stream.chunks(size) {
                frames.feed(chunk, |_| 10, |kind, body| seen.push((kind, body.to_vec())));
            }
            assert_eq!(seen, expected, "chunks of {size}");
        }
    }

    #[test]
    fn the_start_up_packet_has_no_type() {
        let (mut frames, mut seen) = (Frames::new(true), Vec::new());
        let startup = [&12u32.to_be_bytes()[..], &196_608u32.to_be_bytes(), b"user"].concat();
        frames.feed(&startup, |_| 4, |kind, body| seen.push((kind, body.to_vec())));
        frames.feed(&message(b'S', b""), |_| 4, |kind, body| seen.push((kind, body.to_vec())));
        assert_eq!(seen, [(0, vec![0, 3, 0, 0]), (b'S', vec![])]);
    }
}
