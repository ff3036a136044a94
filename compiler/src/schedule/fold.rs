//! How a fold of a tile in registers runs: each thread its own elements, then lanes by shuffles, then warps through shared memory.
//!
//! Keeps the declared order. A tree of `w` lanes adds what is equal modulo `w` in ascending order, so those elements must be in one thread;
//! its halvings are binary digits of the layout, in falling order of their strides. Folds whose result does not depend on the order
//! (`max`, `min`, integers), and all folds beside products on tensor cores, take what is nearest first.

use super::layout::{Layout, primes};
use crate::tile::ir::{FoldOp, Order};
use std::collections::BTreeSet;
use tessera_artifact::DType;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// What a thread's registers hold, ascending; kept apart are those of different coordinates modulo this number.
    Registers { modulo: u64, from_identity: bool },
    /// Registers whose coordinates are this far apart meet.
    Pairs(u64),
    /// Lanes whose numbers differ in this bit meet.
    Lanes(u32),
    /// Warps whose numbers differ in these digits meet, each `count` values of the number divided by `place`; the first pair first.
    Warps(Vec<WarpDigit>),
    /// Lanes of the tree past the end hold the identity.
    Identity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarpDigit {
    pub place: u64,
    pub count: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoldPlan {
    pub steps: Vec<Step>,
    /// That each thread leaves for the others where warps meet; 0 if they do not.
    pub exchanged: u64,
}

/// `None` where the layout does not have the order. `any_order`: none is asked for.
pub fn plan(
    layout: &Layout,
    axis: usize,
    op: FoldOp,
    dtype: DType,
    order: Order,
    any_order: bool,
) -> Option<FoldPlan> {
    let free = any_order || dtype.is_int() || !matches!(op, FoldOp::Sum | FoldOp::Prod);
    let lanes = on_axis(&layout.lanes, axis);
    let warps = on_axis(&layout.warps, axis);
    let steps = match order {
        _ if free => {
            let mut steps = vec![Step::Registers {
                modulo: 1,
                from_identity: false,
            }];
            steps.extend(lanes.iter().map(|d| Step::Lanes(d.place as u32)));
            if !warps.is_empty() {
                let digits = warps.iter().map(AxisDigit::warp_digit).collect();
                steps.push(Step::Warps(digits));
            }
            steps
        }
        Order::Ascending if lanes.is_empty() && warps.is_empty() => vec![Step::Registers {
            modulo: 1,
            from_identity: true,
        }],
        Order::Ascending => return None,
        Order::Tree(width) => tree(layout, axis, u64::from(width), &lanes, &warps)?,
    };
    let exchanged = exchanged(layout, axis, &steps);
    Some(FoldPlan { steps, exchanged })
}

/// A prime digit of a thread's number that moves along the folded axis.
struct AxisDigit {
    place: u64,
    count: u64,
    stride: u64,
}

impl AxisDigit {
    fn warp_digit(&self) -> WarpDigit {
        WarpDigit {
            place: self.place,
            count: self.count,
        }
    }
}

fn on_axis(digits: &[super::layout::Digit], axis: usize) -> Vec<AxisDigit> {
    let mut place = 1;
    let mut found = vec![];
    for (of, stride, count) in digits.iter().flat_map(primes) {
        if of == Some(axis) {
            found.push(AxisDigit {
                place,
                count,
                stride,
            });
        }
        place *= count;
    }
    found
}

fn tree(
    layout: &Layout,
    axis: usize,
    width: u64,
    lanes: &[AxisDigit],
    warps: &[AxisDigit],
) -> Option<Vec<Step>> {
    let mut threads = lanes.iter().chain(warps);
    if threads.any(|d| d.count != 2 || d.stride >= width || !d.stride.is_power_of_two()) {
        return None;
    }
    let registers = || layout.registers.iter().filter(|d| d.axis == Some(axis));
    let below = |d: &&super::layout::Digit| d.stride < width;
    if registers().filter(below).any(|d| {
        !d.stride.is_power_of_two() || (!d.count.is_power_of_two() && d.stride * d.count > width)
    }) {
        return None;
    }
    let in_registers: BTreeSet<u64> = registers()
        .filter(below)
        .flat_map(primes)
        .filter(|&(.., count)| count == 2)
        .map(|(_, stride, _)| stride)
        .collect();
    let mut steps = vec![Step::Registers {
        modulo: width,
        from_identity: false,
    }];
    let mut distance = width / 2;
    while distance > 0 {
        let lane = lanes.iter().find(|d| d.stride == distance);
        let warp = warps.iter().find(|d| d.stride == distance);
        if let Some(lane) = lane {
            steps.push(Step::Lanes(lane.place as u32));
        } else if let Some(warp) = warp {
            match steps.last_mut() {
                Some(Step::Warps(digits)) => digits.push(warp.warp_digit()),
                _ => steps.push(Step::Warps(vec![warp.warp_digit()])),
            }
        } else if in_registers.contains(&distance) {
            steps.push(Step::Pairs(distance));
        } else if distance >= layout.shape[axis] {
            steps.push(Step::Identity);
        } else {
            return None;
        }
        distance /= 2;
    }
    // One meeting of the warps is enough for every layout that is made, and what they leave has one place.
    let meetings = steps.iter().filter(|s| matches!(s, Step::Warps(_))).count();
    (meetings <= 1).then_some(steps)
}

/// Values of a thread when the warps meet.
fn exchanged(layout: &Layout, axis: usize, steps: &[Step]) -> u64 {
    let mut held: BTreeSet<(u64, u64)> = BTreeSet::new();
    for step in steps {
        match step {
            Step::Registers { modulo, .. } => {
                for register in 0..layout.registers() {
                    let at = layout.of_register(register)[axis];
                    held.insert((layout.register_without(axis, register), at % modulo));
                }
            }
            Step::Pairs(distance) => held.retain(|(_, at)| at & distance == 0),
            Step::Warps(_) => return held.len() as u64,
            Step::Lanes(_) | Step::Identity => {}
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(layout: &Layout, axis: usize, order: Order) -> Option<FoldPlan> {
        plan(layout, axis, FoldOp::Sum, DType::F32, order, false)
    }

    #[test]
    fn a_tree_meets_in_warps_before_lanes_before_registers() {
        let layout = Layout::runs(&[7 * 1024], 8, 4, false);
        let plan = sum(&layout, 0, Order::Tree(1024)).expect("the layout has the order");
        let meet = |place| WarpDigit { place, count: 2 };
        let mut steps = vec![
            Step::Registers {
                modulo: 1024,
                from_identity: false,
            },
            Step::Warps(vec![meet(2), meet(1)]),
        ];
        steps.extend([16, 8, 4, 2, 1].map(Step::Lanes));
        steps.extend([4, 2, 1].map(Step::Pairs));
        assert_eq!(plan.steps, steps);
        assert_eq!(plan.exchanged, 8);
    }

    #[test]
    fn a_narrower_tree_wants_elements_that_other_threads_have() {
        let layout = Layout::runs(&[7 * 1024], 8, 4, false);
        assert_eq!(sum(&layout, 0, Order::Tree(512)), None);
        assert_eq!(sum(&layout, 0, Order::Ascending), None);
        let largest = plan(&layout, 0, FoldOp::Max, DType::F32, Order::Ascending, false);
        assert_eq!(largest.expect("any order does").exchanged, 1);
    }

    #[test]
    fn rows_in_one_thread_ascend_from_the_identity() {
        let layout = Layout::runs(&[4, 128], 4, 1, false);
        let plan = sum(&layout, 0, Order::Ascending).expect("the axis is in registers");
        assert_eq!(
            plan.steps,
            [Step::Registers {
                modulo: 1,
                from_identity: true
            }]
        );
    }
}
