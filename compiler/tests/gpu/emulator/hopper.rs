//! The instructions of Hopper and others that are more than arithmetic on registers, as read from PTX.

use super::ptx::{Names, Operand, PARAM_BASE, Ty};

/// An address: a register and what is added to it.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub base: usize,
    pub offset: u64,
}

/// A box of the tensor whose map lies at `map`.
#[derive(Clone, Debug)]
pub struct TensorBox {
    pub map: Place,
    pub at: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    Index,
    Butterfly,
    Up,
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    Any,
    All,
    Ballot,
}

/// What `redux` does with a value of each lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneFold {
    Sum,
    SignedMin,
    SignedMax,
    UnsignedMin,
    UnsignedMax,
}

/// Operands are registers (constants too) but for numbers that are part of the instruction.
#[derive(Clone, Debug)]
pub enum Special {
    /// `count`: all of the block if it is not given; `sync`: the threads wait too.
    Barrier {
        id: usize,
        count: Option<usize>,
        sync: bool,
    },
    WarpBarrier {
        mask: usize,
    },
    ClusterArrive {
        release: bool,
    },
    ClusterWait,
    /// The next launch may start.
    GridLaunch,
    /// Until the launches before this one are over.
    GridWait,
    Shuffle {
        how: Shuffle,
        within: Option<usize>,
        value: usize,
        by: usize,
        clamp: usize,
        mask: usize,
    },
    Vote {
        how: Vote,
        value: usize,
        mask: usize,
    },
    LaneFold {
        how: LaneFold,
        value: usize,
        mask: usize,
    },
    /// Has a predicate besides the result.
    Elect {
        leads: usize,
        mask: usize,
    },
    LoadMatrix {
        to: Vec<usize>,
        from: Place,
        transposed: bool,
    },
    StoreMatrix {
        to: Place,
        from: Vec<usize>,
        transposed: bool,
    },
    MapShared {
        address: usize,
        rank: usize,
    },

    BarrierInit {
        at: Place,
        count: usize,
    },
    BarrierInvalidate {
        at: Place,
    },
    /// `count` arrivals (one if it is not given), after `expect` more bytes are expected.
    BarrierArrive {
        at: Place,
        count: Option<usize>,
        expect: Option<usize>,
        cluster: bool,
    },
    BarrierExpect {
        at: Place,
        bytes: usize,
    },
    /// For the end of the phase of this parity; `blocks`: the thread may be kept waiting.
    BarrierWait {
        at: Place,
        parity: usize,
        blocks: bool,
    },
    /// A fence after which the asynchronous proxy sees what is ordered before it.
    ProxyFence,
    /// A fence after which the cluster and the asynchronous proxy see initialised barriers.
    BarrierInitFence,

    TensorLoad {
        to: Place,
        from: TensorBox,
        barrier: Place,
        multicast: Option<usize>,
    },
    TensorStore {
        to: TensorBox,
        from: Place,
    },
    BulkLoad {
        to: Place,
        from: Place,
        bytes: usize,
        barrier: Place,
        multicast: Option<usize>,
    },
    BulkStore {
        to: Place,
        from: Place,
        bytes: usize,
    },
    BulkCommit,
    /// All but the last `left` groups; `read`: only until their sources are read.
    BulkWait {
        left: usize,
        read: bool,
    },
    Copy {
        to: Place,
        from: Place,
        bytes: u64,
        source_bytes: Option<usize>,
    },
    CopyCommit,
    /// All but the last `left` groups; `None`: every copy.
    CopyWait {
        left: Option<usize>,
    },
    CopyArrive {
        at: Place,
        extra: bool,
    },
    PrefetchMap {
        map: Place,
    },

    MatrixFence,
    MatrixMultiply(Box<MatrixMultiply>),
    MatrixCommit,
    MatrixWait {
        left: usize,
    },
    SetRegisters {
        more: bool,
        count: usize,
    },
}

impl Special {
    /// Threads come to it and go on when others are there, or something is over.
    pub fn waits(&self) -> bool {
        use Special::*;
        match self {
            Barrier { .. } | WarpBarrier { .. } | ClusterWait | Shuffle { .. } | Vote { .. } => {
                true
            }
            LaneFold { .. } | Elect { .. } | LoadMatrix { .. } | StoreMatrix { .. } => true,
            BarrierWait { blocks, .. } => *blocks,
            other => other.takes_a_warpgroup(),
        }
    }

    pub fn takes_a_warpgroup(&self) -> bool {
        use Special::*;
        matches!(
            self,
            MatrixFence
                | MatrixMultiply(_)
                | MatrixCommit
                | MatrixWait { .. }
                | SetRegisters { .. }
        )
    }
}

/// `wgmma.mma_async`: 64 rows, `n` columns, 32 bytes of K.
#[derive(Clone, Debug)]
pub struct MatrixMultiply {
    pub n: usize,
    pub k: usize,
    pub a_type: Ty,
    pub b_type: Ty,
    pub sum: Vec<usize>,
    pub a: MatrixA,
    /// Register of the descriptor.
    pub b: usize,
    /// Predicate: whether the sums go on.
    pub goes_on: usize,
    pub negate_a: bool,
    pub negate_b: bool,
    /// The operand lies in shared memory with its K axis outermost.
    pub a_by_k: bool,
    pub b_by_k: bool,
}

#[derive(Clone, Debug)]
pub enum MatrixA {
    Registers(Vec<usize>),
    Descriptor(usize),
}

/// `None` for what is no such instruction; else also the register of its result.
#[allow(clippy::type_complexity, reason = "used once")]
pub fn read(
    op: &str,
    operands: &[Operand],
    names: &mut Names,
) -> Result<Option<(Special, Option<usize>)>, String> {
    let parts: Vec<&str> = op.split('.').collect();
    let has = |what: &str| parts.contains(&what);
    let unknown = || format!("no `{op}` with these operands in this emulator");
    let register = |i: usize| match operands.get(i) {
        Some(Operand::Register(r)) => Ok(*r),
        _ => Err(unknown()),
    };
    let given = |i: usize| match operands.get(i) {
        Some(Operand::Register(r)) => Ok(Some(*r)),
        None => Ok(None),
        _ => Err(unknown()),
    };
    let place = |i: usize| match operands.get(i) {
        Some(&Operand::Memory { base, offset }) => Ok(Place { base, offset }),
        _ => Err(unknown()),
    };
    let tensor = |i: usize| match operands.get(i) {
        Some(Operand::Box { base, offset, at }) => Ok(TensorBox {
            map: Place {
                base: *base,
                offset: *offset,
            },
            at: at.clone(),
        }),
        _ => Err(unknown()),
    };
    let vector = |i: usize| match operands.get(i) {
        Some(Operand::Vector(all)) => {
            let all: Option<Vec<usize>> = all.iter().copied().collect();
            all.ok_or_else(unknown)
        }
        _ => Err(unknown()),
    };
    let number = |names: &Names, i: usize| -> Result<usize, String> {
        Ok(names.known(register(i)?).ok_or_else(unknown)? as usize)
    };
    let none = |special| Ok(Some((special, None)));
    match parts[0] {
        "bar" | "barrier" if parts.get(1) == Some(&"warp") => {
            none(Special::WarpBarrier { mask: register(0)? })
        }
        "barrier" if parts.get(1) == Some(&"cluster") => none(match parts.get(2) {
            Some(&"arrive") => Special::ClusterArrive {
                release: !has("relaxed"),
            },
            Some(&"wait") => Special::ClusterWait,
            _ => return Err(unknown()),
        }),
        "bar" | "barrier" if has("sync") || has("arrive") => none(Special::Barrier {
            id: register(0)?,
            count: given(1)?,
            sync: has("sync"),
        }),
        "shfl" => {
            let how = match parts.get(2) {
                Some(&"idx") => Shuffle::Index,
                Some(&"bfly") => Shuffle::Butterfly,
                Some(&"up") => Shuffle::Up,
                Some(&"down") => Shuffle::Down,
                _ => return Err(unknown()),
            };
            let (to, within) = match &operands[0] {
                Operand::Vector(pair) if pair.len() == 2 => (pair[0], pair[1]),
                Operand::Register(r) => (Some(*r), None),
                _ => return Err(unknown()),
            };
            let special = Special::Shuffle {
                how,
                within,
                value: register(1)?,
                by: register(2)?,
                clamp: register(3)?,
                mask: register(4)?,
            };
            Ok(Some((special, to)))
        }
        "vote" => {
            let how = match parts.get(2) {
                Some(&"any") => Vote::Any,
                Some(&"all") => Vote::All,
                Some(&"ballot") => Vote::Ballot,
                _ => return Err(unknown()),
            };
            let special = Special::Vote {
                how,
                value: register(1)?,
                mask: register(2)?,
            };
            Ok(Some((special, Some(register(0)?))))
        }
        "redux" => {
            let how = match parts[2..] {
                ["add", "s32" | "u32"] => LaneFold::Sum,
                ["min", "s32"] => LaneFold::SignedMin,
                ["max", "s32"] => LaneFold::SignedMax,
                ["min", "u32"] => LaneFold::UnsignedMin,
                ["max", "u32"] => LaneFold::UnsignedMax,
                _ => return Err(unknown()),
            };
            let special = Special::LaneFold {
                how,
                value: register(1)?,
                mask: register(2)?,
            };
            Ok(Some((special, Some(register(0)?))))
        }
        "elect" => match &operands[0] {
            Operand::Vector(pair) if pair.len() == 2 => {
                let leads = pair[1].ok_or_else(unknown)?;
                Ok(Some((
                    Special::Elect {
                        leads,
                        mask: register(1)?,
                    },
                    pair[0],
                )))
            }
            _ => Err(unknown()),
        },
        "ldmatrix" | "stmatrix" => {
            if !has("m8n8") || !has("b16") {
                return Err(unknown());
            }
            let transposed = has("trans");
            let load = parts[0] == "ldmatrix";
            let (memory, registers) = if load { (1, 0) } else { (0, 1) };
            let registers = match operands.get(registers) {
                Some(Operand::Register(r)) => vec![*r],
                _ => vector(registers)?,
            };
            let count = ["x1", "x2", "x4"].iter().position(|x| has(x));
            if count.map(|n| 1 << n) != Some(registers.len()) {
                return Err(unknown());
            }
            none(match load {
                true => Special::LoadMatrix {
                    to: registers,
                    from: place(memory)?,
                    transposed,
                },
                false => Special::StoreMatrix {
                    to: place(memory)?,
                    from: registers,
                    transposed,
                },
            })
        }
        "mapa" => {
            let special = Special::MapShared {
                address: register(1)?,
                rank: register(2)?,
            };
            Ok(Some((special, Some(register(0)?))))
        }
        "mbarrier" => mbarrier(&parts, operands, &unknown, &register, &given, &place),
        "griddepcontrol" if has("launch_dependents") => none(Special::GridLaunch),
        "griddepcontrol" if has("wait") => none(Special::GridWait),
        "fence" if has("mbarrier_init") => none(Special::BarrierInitFence),
        "fence" if has("proxy") && has("async") && !has("global") => none(Special::ProxyFence),
        "fence" if has("proxy") && !has("async") => Err(unknown()),
        "prefetch" if has("tensormap") => {
            let mut map = place(0)?;
            if has("param") {
                map.offset = map.offset.wrapping_add(PARAM_BASE);
            }
            none(Special::PrefetchMap { map })
        }
        "cp" if has("bulk") => {
            let to_shared = has("shared::cluster") && has("global");
            let multicast = |i| match has("multicast::cluster") {
                true => register(i).map(Some),
                false => Ok(None),
            };
            if has("im2col") || has("cache_hint") && !has("L2::cache_hint") {
                return Err(unknown());
            }
            // The policy of a cache hint comes last and changes no result.
            none(if has("commit_group") {
                Special::BulkCommit
            } else if has("wait_group") {
                Special::BulkWait {
                    left: number(names, 0)?,
                    read: has("read"),
                }
            } else if has("tensor") && to_shared {
                Special::TensorLoad {
                    to: place(0)?,
                    from: tensor(1)?,
                    barrier: place(2)?,
                    multicast: multicast(3)?,
                }
            } else if has("tensor") && has("bulk_group") && !has("reduce") {
                Special::TensorStore {
                    to: tensor(0)?,
                    from: place(1)?,
                }
            } else if to_shared {
                Special::BulkLoad {
                    to: place(0)?,
                    from: place(1)?,
                    bytes: register(2)?,
                    barrier: place(3)?,
                    multicast: multicast(4)?,
                }
            } else if has("bulk_group") && !has("reduce") {
                Special::BulkStore {
                    to: place(0)?,
                    from: place(1)?,
                    bytes: register(2)?,
                }
            } else {
                return Err(unknown());
            })
        }
        "cp" if has("async") => none(if has("commit_group") {
            Special::CopyCommit
        } else if has("wait_group") {
            Special::CopyWait {
                left: Some(number(names, 0)?),
            }
        } else if has("wait_all") {
            Special::CopyWait { left: None }
        } else if has("mbarrier") {
            Special::CopyArrive {
                at: place(0)?,
                extra: !has("noinc"),
            }
        } else {
            Special::Copy {
                to: place(0)?,
                from: place(1)?,
                bytes: number(names, 2)? as u64,
                source_bytes: given(3)?,
            }
        }),
        "wgmma" if has("fence") => none(Special::MatrixFence),
        "wgmma" if has("commit_group") => none(Special::MatrixCommit),
        "wgmma" if has("wait_group") => none(Special::MatrixWait {
            left: number(names, 0)?,
        }),
        "wgmma" => {
            let shape = parts.iter().find_map(|p| p.strip_prefix("m64n"));
            let (n, k) = shape.and_then(|s| s.split_once('k')).ok_or_else(unknown)?;
            let (n, k): (usize, usize) = (
                n.parse().map_err(|_| unknown())?,
                k.parse().map_err(|_| unknown())?,
            );
            let at = parts.iter().position(|p| *p == "f32").ok_or_else(unknown)?;
            let element = |i: usize| {
                let ty = parts
                    .get(at + i)
                    .and_then(|p| Ty::parse(p))
                    .ok_or_else(unknown)?;
                match ty {
                    Ty::Bf16 | Ty::F(16) | Ty::E4M3 | Ty::E5M2 => Ok(ty),
                    _ => Err(unknown()),
                }
            };
            let (a_type, b_type) = (element(1)?, element(2)?);
            let sum = vector(0)?;
            let a = match &operands[1] {
                Operand::Vector(_) => MatrixA::Registers(vector(1)?),
                _ => MatrixA::Descriptor(register(1)?),
            };
            let wide = a_type.bits() == 16;
            let fits = (8..=256).contains(&n)
                && n.is_multiple_of(8)
                && sum.len() == n / 2
                && k * a_type.bits() as usize == 256
                && a_type.bits() == b_type.bits()
                && (!wide || a_type == b_type)
                && !matches!(&a, MatrixA::Registers(r) if r.len() != 4);
            if !fits {
                return Err(unknown());
            }
            let sign = |i: usize| match number(names, i)? as i64 {
                1 => Ok(false),
                -1 => Ok(true),
                _ => Err(unknown()),
            };
            let flag = |i: usize| Ok::<_, String>(number(names, i)? != 0);
            let (a_by_k, b_by_k) = match (&a, operands.len()) {
                (_, 6) if !wide => (false, false),
                (MatrixA::Registers(_), 7) if wide => (false, flag(6)?),
                (MatrixA::Descriptor(_), 8) if wide => (flag(6)?, flag(7)?),
                _ => return Err(unknown()),
            };
            none(Special::MatrixMultiply(Box::new(MatrixMultiply {
                n,
                k,
                a_type,
                b_type,
                sum,
                b: register(2)?,
                goes_on: register(3)?,
                negate_a: sign(4)?,
                negate_b: sign(5)?,
                a,
                a_by_k,
                b_by_k,
            })))
        }
        "setmaxnreg" => none(Special::SetRegisters {
            more: has("inc"),
            count: number(names, 0)?,
        }),
        _ => Ok(None),
    }
}

#[allow(clippy::type_complexity, reason = "the caller's own helpers")]
fn mbarrier(
    parts: &[&str],
    operands: &[Operand],
    unknown: &dyn Fn() -> String,
    register: &dyn Fn(usize) -> Result<usize, String>,
    given: &dyn Fn(usize) -> Result<Option<usize>, String>,
    place: &dyn Fn(usize) -> Result<Place, String>,
) -> Result<Option<(Special, Option<usize>)>, String> {
    let has = |what: &str| parts.contains(&what);
    let none = |special| Ok(Some((special, None)));
    // The state that an arrival gives is for waits that are not supported; without it the address comes first.
    let first = usize::from(!matches!(operands.first(), Some(Operand::Memory { .. })));
    let cluster = has("shared::cluster");
    match parts[1] {
        "init" => none(Special::BarrierInit {
            at: place(0)?,
            count: register(1)?,
        }),
        "inval" => none(Special::BarrierInvalidate { at: place(0)? }),
        "arrive" if has("noComplete") => Err(unknown()),
        "arrive" if has("expect_tx") => none(Special::BarrierArrive {
            at: place(first)?,
            count: None,
            expect: Some(register(first + 1)?),
            cluster,
        }),
        "arrive" => none(Special::BarrierArrive {
            at: place(first)?,
            count: given(first + 1)?,
            expect: None,
            cluster,
        }),
        "expect_tx" => none(Special::BarrierExpect {
            at: place(0)?,
            bytes: register(1)?,
        }),
        "try_wait" | "test_wait" if has("parity") => {
            let special = Special::BarrierWait {
                at: place(1)?,
                parity: register(2)?,
                blocks: parts[1] == "try_wait",
            };
            Ok(Some((special, Some(register(0)?))))
        }
        _ => Err(unknown()),
    }
}
