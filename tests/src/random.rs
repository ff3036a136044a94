//! Seeded random numbers for tests: SplitMix64, the same on every machine.

/// How many cases a test with random input runs: `usual`, times `TESSERA_SOAK_FACTOR` where that is set.
///
/// # Panics
/// If the variable is no number.
pub fn cases(usual: usize) -> usize {
    match std::env::var("TESSERA_SOAK_FACTOR") {
        Ok(factor) => {
            usual
                * factor
                    .parse::<usize>()
                    .expect("TESSERA_SOAK_FACTOR must be a whole number")
        }
        Err(_) => usual,
    }
}

/// A stream of random numbers that its seed determines.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// An independent stream, so that what is drawn for one thing doesn't depend on how much another took.
    pub fn stream(&self, name: &str) -> Random {
        // FNV-1a, then one step to spread it.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Random::new(Random::new(self.state ^ hash).next_u64())
    }

    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `bound - 1`.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "a choice among nothing");
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    pub fn flip(&mut self) -> bool {
        self.next_u64() >> 63 == 1
    }

    /// Uniform in -1 .. 1.
    pub fn signed(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 * (2.0 / (1u64 << 24) as f32) - 1.0
    }

    /// Uniform with mean 0 and the given standard deviation.
    pub fn spread(&mut self, deviation: f32) -> f32 {
        self.signed() * deviation * 3f32.sqrt()
    }
}
