//! Random numbers from a seed, and what they do to an input.

/// Numbers that look random and are the same for the same seed (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Less than `most`, or 0.
    pub(crate) fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(most.max(1)).unwrap()).unwrap()
    }

    pub(crate) fn one_of<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// What readers are wrong about: ends of ranges, lengths that lie, quotes, and letters of many bytes.
const PIECES: [&[u8]; 18] = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x30\x84\xff\xff\xff\xff",
    b"\x30\x80",
    b"-1",
    b"18446744073709551616",
    b"1e400",
    b"\"",
    b"\n[limits]\n",
    b" = ",
    b"[[[[[[[[",
    "\u{1f980}".as_bytes(),
    b"=",
];

/// Changes an input a few times at random, up to `limit` bytes.
pub(crate) fn mutate(random: &mut Random, mut input: Vec<u8>, limit: usize) -> Vec<u8> {
    for _ in 0..1 + random.below(8) {
        let at = random.below(input.len() + 1);
        let end = (at + random.below(64)).min(input.len());
        match random.below(8) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.next().to_le_bytes()[0],
            2 => drop(input.drain(at..end)),
            3 => input.truncate(at),
            4 => {
                let piece = PIECES[random.below(PIECES.len())];
                drop(input.splice(at..at, piece.iter().copied()));
            }
            5 => {
                let count = random.below(16);
                let piece = random.bytes(count);
                drop(input.splice(at..end, piece));
            }
            6 => {
                let piece = input[at..end].to_vec();
                let times = 1 + random.below(8);
                drop(input.splice(at..at, piece.repeat(times)));
            }
            _ => {
                // Now and then as much as may come.
                let piece = input[at..end].to_vec();
                let times = if random.below(64) == 0 { limit / piece.len().max(1) } else { 1 };
                drop(input.splice(at..at, piece.repeat(times)));
            }
        }
    }
    input.truncate(limit);
    input
}
