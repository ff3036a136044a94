//! The model's kernels as functions: arguments in the order of their `.tl` declarations, checked by every launch.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tessera_device::{Arg, Kernel, LaunchError, Library, LibraryError, View, ViewMut};

/// All kernels that the forward pass launches.
pub struct Kernels {
    library: Library,
    table: Table,
    /// Time by kernel, while profiling.
    profile: RefCell<Option<Profile>>,
}

/// Launches and their time by kernel name.
pub type Profile = BTreeMap<&'static str, (u64, Duration)>;

impl Kernels {
    /// Finds every kernel in a library.
    ///
    /// # Errors
    /// [`LibraryError`]: one is missing or has other parameters.
    pub fn new(library: Library) -> Result<Kernels, LibraryError> {
        let table = Table::new(&library)?;
        Ok(Kernels {
            library,
            table,
            profile: RefCell::new(None),
        })
    }

    pub fn library(&self) -> &Library {
        &self.library
    }

    /// Starts measuring every launch.
    pub fn start_profile(&self) {
        *self.profile.borrow_mut() = Some(Profile::new());
    }

    /// Stops measuring.
    pub fn take_profile(&self) -> Profile {
        self.profile.take().unwrap_or_default()
    }

    fn launch(&self, name: &'static str, kernel: &Kernel, args: &[Arg]) -> Result<(), LaunchError> {
        if self.profile.borrow().is_none() {
            return kernel.launch(args);
        }
        let start = Instant::now();
        kernel.launch(args)?;
        if let Some(profile) = self.profile.borrow_mut().as_mut() {
            let entry = profile.entry(name).or_default();
            entry.0 += 1;
            entry.1 += start.elapsed();
        }
        Ok(())
    }
}

macro_rules! kernels {
    ($($module:ident { $($name:ident($($arg:ident: $ty:ty),* $(,)?);)* })*) => {
        struct Table { $($($name: Kernel,)*)* }

        impl Table {
            fn new(library: &Library) -> Result<Table, LibraryError> {
                Ok(Table {
                    $($($name: library.expect_kernel(
                        concat!("dsv4::", stringify!($module), "::", stringify!($name)),
                        &[$(stringify!($arg)),*],
                    )?,)*)*
                })
            }
        }

        impl Kernels {
            $($(
                #[allow(clippy::too_many_arguments)]
                pub fn $name(&self, $($arg: $ty),*) -> Result<(), LaunchError> {
                    self.launch(stringify!($name), &self.table.$name, &[$($arg.into()),*])
                }
            )*)*
        }
    };
}

/// An `index` argument.
#[derive(Clone, Copy)]
pub struct Index(pub usize);

impl From<Index> for Arg<'_> {
    fn from(index: Index) -> Self {
        Arg::Index(index.0 as i64)
    }
}

kernels! {
    convert {
        convert(x: View, y: ViewMut);
    }
    embedding {
        embed(ids: View, table: View, x: ViewMut);
        take_rows(x: View, rows: View, y: ViewMut);
    }
    norm {
        rmsnorm(x: View, w: View, y: ViewMut, eps: f32);
    }
    linear {
        pack_panels(w: View, panels: ViewMut);
        linear(x: View, w: View, y: ViewMut);
    }
    rotary {
        rope_frequencies(f: ViewMut, ratio: f64, factor: f64, lo: f64, hi: f64);
        rope_table(pos: View, f: View, cosine: ViewMut, sine: ViewMut);
        norm_rotate(x: View, cosine: View, sine: View, y: ViewMut, eps: f32);
        rotate(x: View, cosine: View, sine: View, y: ViewMut, sign: f32);
    }
    hyper_connection {
        hc_pre(x: View, mix: View, base: View, scale: View, pre: ViewMut, post: ViewMut, comb: ViewMut, y: ViewMut,
               norm_eps: f32, eps: f32, iters: Index);
        hc_post(f: View, x: View, post: View, comb: View, y: ViewMut);
        hc_head(x: View, mix: View, base: View, scale: View, y: ViewMut, norm_eps: f32, eps: f32);
    }
    attention {
        store_ring(rows: View, pos: View, seq: View, ring: ViewMut);
        attention(q: View, ring: View, entries: View, picks: View, pos: View, seq: View, sink: View, o: ViewMut,
                  window: Index, ratio: Index, scale: f32);
    }
    compressor {
        compress(keys: View, gates: View, ape: View, norm: View, f: View, pos: View, seq: View, entries: ViewMut, eps: f32);
    }
    indexer {
        index_scores(q: View, w: View, k: View, pos: View, seq: View, scores: ViewMut, ratio: Index, all: Index,
                     scale: f32, head_scale: f32);
        index_topk(scores: View, pos: View, picks: ViewMut, ratio: Index);
    }
    router {
        route(logits: View, bias: View, scores: ViewMut, experts: ViewMut, weights: ViewMut, route_scale: f32);
        route_by_table(logits: View, ids: View, table: View, scores: ViewMut, experts: ViewMut, weights: ViewMut,
                       route_scale: f32);
    }
    experts {
        count_pairs(expert: View, count: ViewMut);
        group_pairs(expert: View, count: View, pair: ViewMut, tile_expert: ViewMut, tile_first: ViewMut, tile_end: ViewMut,
                    tiles: ViewMut, rows: Index);
        swiglu(gate: View, up: View, y: ViewMut, limit: f32);
        expert_up(x: View, w1: View, w3: View, pair: View, tile_expert: View, tile_first: View, tile_end: View, tiles: View,
                  weight: View, h: ViewMut, choices: Index, rows: Index, limit: f32);
        expert_down(h: View, w2: View, pair: View, tile_expert: View, tile_first: View, tile_end: View, tiles: View,
                    y: ViewMut, rows: Index);
        combine(y: View, shared_out: View, routed: ViewMut, total: ViewMut);
    }
    mtp {
        mtp_merge(e: View, h: View, x: ViewMut);
    }
    sample {
        greedy(logits: View, id: ViewMut);
        sample(logits: View, request: View, position: View, id: ViewMut, temperature: f32, top_p: f32, seed0: u32, seed1: u32);
    }
}
