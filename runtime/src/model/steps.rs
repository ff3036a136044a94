//! Decode steps that are recorded once and then replayed: one token of every sequence, always the same launches.
//!
//! A recording is of a number of tokens (a bucket: a power of two, or all sequences) and of a bound on the sequences' lengths, which sizes
//! some grids. A smaller step is filled up with idle sequences' next tokens, whose traces the sequences' own next tokens overwrite before
//! anybody reads them. Bits depend on neither: a token's never depend on what else is in the call.
//!
//! Needs: kernels that take all that changes from step to step from the device's memory. Keeps: what cannot be recorded is launched.

use tessera_device::Device;
use tessera_device::cuda::CudaRecording;

use super::ModelError;

/// What a recording is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub tokens: usize,
    /// No sequence is longer after the step.
    pub longest: usize,
}

/// The recordings of one session.
pub(super) struct Steps {
    pub on: bool,
    steps: Vec<(Shape, Step)>,
}

enum Step {
    /// It ran once, so that all that a launch makes at first is there.
    Launched,
    Recorded(CudaRecording),
    Refused,
}

/// Bounds below this are not told apart.
const LEAST_BOUND: usize = 1024;

impl Steps {
    /// On a GPU, where launching takes longer than much of what is launched.
    pub fn new(device: &Device) -> Self {
        Steps {
            on: matches!(device, Device::Cuda(_)),
            steps: Vec::new(),
        }
    }

    /// The shape that a step of so many tokens is given; `None` if there is no room for it.
    pub fn shape(
        tokens: usize,
        longest: usize,
        sequences: usize,
        context: usize,
        most_tokens: usize,
    ) -> Option<Shape> {
        let bucket = tokens.next_power_of_two().min(sequences);
        let bound = longest.next_power_of_two().max(LEAST_BOUND).min(context);
        (tokens <= bucket && bucket <= most_tokens).then_some(Shape {
            tokens: bucket,
            longest: bound,
        })
    }

    /// Runs a step whose launches are `launch`: those of the shape, of the model and in the memory of this session.
    pub fn run(
        &mut self,
        device: &Device,
        shape: Shape,
        launch: &mut dyn FnMut() -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let Device::Cuda(gpu) = device else {
            return launch();
        };
        let Some((_, step)) = self.steps.iter_mut().find(|(s, _)| *s == shape) else {
            launch()?;
            self.steps.push((shape, Step::Launched));
            return Ok(());
        };
        if let Step::Launched = step {
            *step = match gpu.record(&mut *launch) {
                Ok(recording) => Step::Recorded(recording),
                // A launch that is wrong says so again below.
                Err(_) => Step::Refused,
            };
        }
        match step {
            // SAFETY: the launches' arguments are the model's parameters and the session's cache and workspace, none of which is
            // replaced as long as model and session live; both are borrowed for the call, the session mutably.
            Step::Recorded(recording) => Ok(unsafe { recording.replay() }?),
            Step::Launched | Step::Refused => launch(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two_or_all_sequences() {
        let tokens = |tokens, sequences| {
            Steps::shape(tokens, 1, sequences, 4096, 64).map(|shape| shape.tokens)
        };
        for (n, sequences, bucket) in [(1, 1, 1), (1, 8, 1), (3, 8, 4), (5, 6, 6), (64, 64, 64)] {
            assert_eq!(tokens(n, sequences), Some(bucket), "{n} of {sequences}");
        }
        // The workspace holds 64 tokens.
        assert_eq!(tokens(65, 100), None);
    }

    #[test]
    fn bounds_hold_the_longest_sequence_and_no_more_than_the_cache() {
        for (longest, context, bound) in [
            (1, 8192, 1024),
            (1024, 8192, 1024),
            (1025, 8192, 2048),
            (5000, 6000, 6000),
            (3, 7, 7),
        ] {
            let shape = Steps::shape(1, longest, 1, context, 64).unwrap();
            assert_eq!(shape.longest, bound, "{longest} of {context}");
        }
    }
}
