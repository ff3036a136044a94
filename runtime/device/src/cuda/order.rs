//! Which launches of a recording wait for which: those that touch the same bytes, one of them writing. All others may run side by side.
//!
//! Needs: what each launch touches, in the order in which the launches were asked for. Keeps: whatever each of them reads is what it would
//! read if they ran one after the other.

use crate::launch::Request;

/// Bytes that a launch touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub start: u64,
    pub end: u64,
    pub writes: bool,
}

#[derive(Default)]
pub(super) struct Order {
    launches: Vec<Launch>,
}

struct Launch {
    touches: Vec<Access>,
    /// A bit for each launch that is over before this one starts.
    behind: Vec<u64>,
}

impl Access {
    fn meets(&self, other: &Access) -> bool {
        (self.writes || other.writes) && self.start < other.end && other.start < self.end
    }
}

impl Order {
    /// Notes the next launch: the numbers of those that it waits for directly, the latest first. None of them is behind another one.
    pub fn next(&mut self, touches: Vec<Access>) -> Vec<usize> {
        let mut behind = vec![0u64; self.launches.len() / 64 + 1];
        let mut direct = vec![];
        for (number, earlier) in self.launches.iter().enumerate().rev() {
            let is_behind = behind[number / 64] >> (number % 64) & 1 == 1;
            let meets = |a: &Access| touches.iter().any(|b| a.meets(b));
            if is_behind || !earlier.touches.iter().any(meets) {
                continue;
            }
            direct.push(number);
            behind[number / 64] |= 1 << (number % 64);
            for (to, from) in behind.iter_mut().zip(&earlier.behind) {
                *to |= from;
            }
        }
        self.launches.push(Launch { touches, behind });
        direct
    }
}

/// What a launch touches of its tensors, each from its first byte to its last, and of the memory that launches share for `scratch`.
pub(super) fn touched(request: &Request, scratch: Option<(u64, u64)>) -> Vec<Access> {
    let tensors = request.tensors.iter().flatten().filter_map(|tensor| {
        let address = request.words[tensor.word];
        let bits = i64::from(tensor.dtype.bits());
        let (mut first, mut last) = (0i64, 0i64);
        for (axis, &extent) in tensor.shape.iter().enumerate() {
            if extent == 0 {
                return None;
            }
            let reach = (request.words[tensor.word + 1 + axis] as i64) * (extent - 1);
            first += reach.min(0);
            last += reach.max(0);
        }
        Some(Access {
            start: address.wrapping_add_signed((first * bits).div_euclid(8)),
            end: address.wrapping_add_signed(((last + 1) * bits + 7).div_euclid(8)),
            writes: tensor.writes,
        })
    });
    let shared = scratch.map(|(start, end)| Access {
        start,
        end,
        writes: true,
    });
    tensors.chain(shared).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(start: u64) -> Access {
        Access {
            start,
            end: start + 8,
            writes: false,
        }
    }

    fn writes(start: u64) -> Access {
        Access {
            writes: true,
            ..reads(start)
        }
    }

    #[test]
    fn launches_wait_for_what_they_read_and_for_who_reads_what_they_write() {
        let mut order = Order::default();
        let none: [usize; 0] = [];
        assert_eq!(order.next(vec![writes(0)]), none);
        // Two that read the same, side by side.
        assert_eq!(order.next(vec![reads(0), writes(8)]), [0]);
        assert_eq!(order.next(vec![reads(0), writes(16)]), [0]);
        assert_eq!(order.next(vec![reads(8), reads(16), writes(24)]), [2, 1]);
        // Both readers are behind the launch before.
        assert_eq!(order.next(vec![reads(24), writes(0)]), [3]);
        // Neighbours do not meet.
        assert_eq!(order.next(vec![writes(32)]), none);
        assert_eq!(order.next(vec![writes(31)]), [5, 4]);
    }

    #[test]
    fn what_is_written_twice_is_written_in_order() {
        let mut order = Order::default();
        for number in 0..200 {
            let expected: &[usize] = match number {
                0 => &[],
                _ => &[number - 1],
            };
            assert_eq!(order.next(vec![writes(0)]), expected);
        }
        assert_eq!(order.next(vec![reads(0)]), [199]);
        assert_eq!(order.next(vec![reads(0)]), [199]);
        assert_eq!(order.next(vec![writes(4)]), [201, 200]);
    }
}
