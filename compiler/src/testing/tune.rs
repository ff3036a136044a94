//! Tries the values of a kernel's `tune` clause on its benches.
//!
//! Benches of the same dims, but for those that change with the batch, are measured together: one choice serves all batches, so that the
//! code of a row does not depend on its batch. The base is what a launch takes without any choice; the others run in turn with it.
//!
//! Keeps: a choice takes the arguments and batches that the base takes, and is faster by more than [`MARGIN`], slower by as much on no bench.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::bench::{self, BenchOptions, Machine, Prepared};
use super::plan::{Case, Plan, plan};
use crate::diag::{Diagnostic, Sink};
use crate::driver::{self, Options};
use crate::sema::{self, Instance, Program, Tuned};
use crate::syntax::ast;
use crate::tile::{
    self,
    ir::{self, GenericValue},
};
use tessera_device::{Device, Kernel, Tensor};

/// A candidate that is not faster by this share is left: two runs of the same code differ by as much.
pub const MARGIN: f64 = 0.02;

/// Each candidate is launched in so many rounds, between the others.
const ROUNDS: usize = 5;

/// Who takes so many times as long as the base is not measured any further.
const HOPELESS: f64 = 4.0;

/// Generic arguments by name.
pub type Values = Vec<(String, GenericValue)>;

/// What came of one set of dims that are no batch.
pub struct Outcome {
    pub dims: Vec<(String, i64)>,
    /// What its instances take.
    params: Vec<ir::Param>,
    /// Seconds of each bench as a launch takes it without a choice.
    pub base: Vec<(String, f64)>,
    /// Of every candidate that could be measured, the fastest first.
    pub measured: Vec<Measured>,
    chosen: Option<usize>,
    /// What the others failed by.
    pub left: Vec<(Values, String)>,
    /// What the measuring ran on.
    pub machine: Machine,
}

pub struct Measured {
    /// Of the generics that are tuned.
    pub values: Values,
    /// Its instances, which fix the dims.
    pub instances: Vec<Instance>,
    /// Seconds of each bench.
    pub times: Vec<f64>,
    /// Geometric mean of the times over the base's.
    pub ratio: f64,
    /// Whether the outputs have the base's bits.
    pub same_bits: bool,
}

impl Outcome {
    /// Whether it decides about launches that this instance takes.
    pub fn replaces(&self, program: &Program<'_>, kernel: usize, instance: &Instance) -> bool {
        self.dims == instance.dims && self.params == program.params(kernel, instance)
    }

    /// Of the candidates that may be chosen the fastest, if it is clearly faster than the base.
    pub fn choice(&self) -> Option<&Measured> {
        self.chosen.and_then(|at| self.measured.get(at))
    }
}

/// A bench's case. Generics that are tuned are open, whatever the bench says.
struct Open<'a> {
    plan: Plan<'a>,
    case: Case,
}

/// Cases of the same dims and of tensors of the same types and shapes, for which one choice is made.
struct Group<'a> {
    dims: Vec<(String, i64)>,
    params: Vec<ir::Param>,
    cases: Vec<Open<'a>>,
}

struct Candidate {
    values: Values,
    instances: Vec<(Instance, ir::Kernel)>,
}

/// One kernel, and how to measure it.
pub struct Tuner<'t, 'a> {
    pub program: &'t Program<'a>,
    pub kernel: usize,
    pub options: &'t Options,
    pub how: &'t BenchOptions,
    /// Choose among those too whose outputs have other bits than the base's.
    pub any_bits: bool,
    /// Told what is going on, and how much of it is done, of how much.
    pub progress: &'t dyn Fn(&str, usize, usize),
}

impl<'a> Tuner<'_, 'a> {
    /// Measures the candidates for every set of dims among the kernel's benches that are `wanted`; problems are in the sink.
    pub fn run(&self, wanted: &dyn Fn(&ast::Test) -> bool, sink: &mut Sink) -> Vec<Outcome> {
        let mut outcomes = vec![];
        let Some(tuned) = self.program.tuned(self.kernel, sink) else {
            return outcomes;
        };
        let general = self.general(sink);
        for group in self.groups(&tuned, wanted, sink) {
            let same_arguments = |(_, k): &&(_, ir::Kernel)| k.params == group.params;
            let base: Vec<_> = general.iter().filter(same_arguments).cloned().collect();
            let candidates = self.candidates(&tuned, &group.dims, &base);
            match self.measure(group, &base, candidates) {
                Ok(outcome) => outcomes.push(outcome),
                Err(d) => sink.report(d),
            }
        }
        outcomes
    }

    /// The benches' cases by the dims that a choice is made for, in the order of the text.
    fn groups(
        &self,
        tuned: &Tuned,
        wanted: &dyn Fn(&ast::Test) -> bool,
        sink: &mut Sink,
    ) -> Vec<Group<'a>> {
        let (program, kernel) = (self.program, self.kernel);
        let mut groups: Vec<Group<'a>> = vec![];
        for &item in program.kernels[kernel].benches.iter().filter(|b| wanted(b)) {
            let Some(plan) = plan(program, kernel, item, sink) else {
                continue;
            };
            for case in &plan.cases {
                let batch = program.batch_dims(kernel, &case.instance);
                let dims: Vec<(String, i64)> = (program.dim_names(kernel))
                    .filter(|name| !batch.iter().any(|b| b == name))
                    .filter(|name| tuned.dims.is_empty() || tuned.dims.iter().any(|d| d == name))
                    .filter_map(|name| Some((name.to_owned(), case.dim(name)?)))
                    .collect();
                let mut case = case.clone();
                (case.given).retain(|(name, _)| tuned.values.iter().all(|(n, _)| n != name));
                let open = Open {
                    plan: plan.clone(),
                    case,
                };
                let params = program.params(kernel, &open.case.instance);
                match groups
                    .iter_mut()
                    .find(|g| g.dims == dims && g.params == params)
                {
                    Some(group) => group.cases.push(open),
                    None => groups.push(Group {
                        dims,
                        params,
                        cases: vec![open],
                    }),
                }
            }
        }
        groups.retain(|group| !group.dims.is_empty());
        groups
    }

    /// The instances that fix no dims.
    fn general(&self, sink: &mut Sink) -> Vec<(Instance, ir::Kernel)> {
        let (program, kernel) = (self.program, self.kernel);
        let all = program.instances(kernel, sink).into_iter();
        all.filter(|instance| instance.dims.is_empty())
            .filter_map(|instance| {
                let elaborated = driver::instance(program, kernel, &instance, sink)?;
                Some((instance, elaborated))
            })
            .collect()
    }

    /// Every combination of values that `where` allows and that takes the batches of `base`.
    fn candidates(
        &self,
        tuned: &Tuned,
        dims: &[(String, i64)],
        base: &[(Instance, ir::Kernel)],
    ) -> Vec<Candidate> {
        let (program, kernel) = (self.program, self.kernel);
        let mut combinations: Vec<Values> = vec![vec![]];
        for (name, values) in &tuned.values {
            combinations = (combinations.iter())
                .flat_map(|before| {
                    values.iter().map(move |value| {
                        let mut all = before.clone();
                        all.push((name.clone(), value.clone()));
                        all
                    })
                })
                .collect();
        }
        let candidate = |values: Values| -> Option<Candidate> {
            let mut sink = Sink::default();
            let mut instances: Vec<(Instance, ir::Kernel)> = vec![];
            for (instance, _) in base {
                let mut given = instance.generics.clone();
                for (name, value) in &mut given {
                    if let Some((_, tried)) = values.iter().find(|(n, _)| n == name) {
                        value.clone_from(tried);
                    }
                }
                let bound = program.bind(kernel, &given, instance.span, &mut sink)?;
                let fixed = Instance {
                    dims: dims.to_vec(),
                    ..bound
                };
                if !program.takes(kernel, &fixed, &|name| value_of(dims, name)) {
                    continue;
                }
                let elaborated = driver::instance(program, kernel, &fixed, &mut sink)?;
                let is_new = |(_, other): &(_, ir::Kernel)| !is_same_code(other, &elaborated);
                if instances.iter().all(is_new) {
                    instances.push((fixed, elaborated));
                }
            }
            let mut all = instances.clone();
            all.extend_from_slice(base);
            sema::check_batches(&all, &mut sink);
            let usable = !instances.is_empty() && !sink.has_errors();
            usable.then_some(Candidate { values, instances })
        };
        combinations.into_iter().filter_map(candidate).collect()
    }

    /// The place among `instances` of what a launch of this case takes.
    fn taken(&self, open: &Open<'_>, instances: &[(Instance, ir::Kernel)]) -> Option<usize> {
        (instances.iter()).position(|(instance, _)| {
            instance.has(&open.case.given)
                && (self.program).takes(self.kernel, instance, &|name| open.case.dim(name))
        })
    }

    fn measure(
        &self,
        group: Group<'_>,
        base: &[(Instance, ir::Kernel)],
        candidates: Vec<Candidate>,
    ) -> Result<Outcome, Diagnostic> {
        let Group {
            dims,
            params,
            cases,
        } = group;
        let first = &cases[0];
        let failed = |open: &Open<'_>, why: &str| bench::failed(&open.plan, &open.case, &why);
        let (device, machine) =
            bench::machine(self.options, self.how).map_err(|e| failed(first, &e))?;
        let mut contenders: Vec<Contender> = vec![];
        let bases = Candidate {
            values: vec![],
            instances: base.to_vec(),
        };
        let mut left = vec![];
        for (at, candidate) in std::iter::once(bases).chain(candidates).enumerate() {
            let takes: Option<Vec<usize>> = (cases.iter())
                .map(|open| self.taken(open, &candidate.instances))
                .collect();
            match takes {
                Some(takes) => contenders.push(Contender {
                    is_base: at == 0,
                    candidate,
                    takes,
                    code: vec![],
                    times: vec![],
                    same_bits: true,
                }),
                None => left.push((candidate.values, "no instance takes the benches".to_owned())),
            }
        }
        self.compile(&mut contenders, &machine, &device, &mut left);
        if !contenders.first().is_some_and(|one| one.is_base) {
            let why = left.first().map_or("", |(_, why)| why);
            return Err(failed(first, why));
        }
        for (at, open) in cases.iter().enumerate() {
            let (_, instance) = &contenders[0].candidate.instances[contenders[0].takes[at]];
            let code = contenders[0].code[at].clone();
            let prepared = bench::filled(
                &open.plan,
                &open.case,
                instance,
                code,
                device.clone(),
                machine.clone(),
            )?;
            let progress = |done| (self.progress)(&open.plan.title, done, ROUNDS);
            race(
                at,
                prepared,
                &mut contenders,
                self.how,
                &mut left,
                &progress,
            )
            .map_err(|why| failed(open, &why))?;
        }
        let base = contenders.remove(0);
        let mut measured: Vec<Measured> = (contenders.into_iter())
            .map(|one| {
                let logs = one.times.iter().zip(&base.times).map(|(a, b)| (a / b).ln());
                Measured {
                    ratio: (logs.sum::<f64>() / one.times.len() as f64).exp(),
                    values: one.candidate.values,
                    instances: one
                        .candidate
                        .instances
                        .into_iter()
                        .map(|(i, _)| i)
                        .collect(),
                    times: one.times,
                    same_bits: one.same_bits,
                }
            })
            .collect();
        measured.sort_by(|a, b| a.ratio.total_cmp(&b.ratio));
        let titles = cases.iter().map(|open| match open.plan.cases.len() {
            1 => open.plan.title.clone(),
            _ => format!("{}, {}", open.plan.title, open.case.label),
        });
        let may_be = |m: &Measured| {
            let slower = |(time, base): (&f64, &f64)| *time > base * (1.0 + MARGIN);
            (m.same_bits || self.any_bits)
                && m.ratio < 1.0 - MARGIN
                && !m.times.iter().zip(&base.times).any(slower)
        };
        let chosen = measured.iter().position(may_be);
        Ok(Outcome {
            dims,
            params,
            chosen,
            base: titles.zip(base.times).collect(),
            measured,
            left,
            machine,
        })
    }

    /// Makes the code of every contender, several at a time; who has none is left.
    fn compile(
        &self,
        contenders: &mut Vec<Contender>,
        machine: &Machine,
        device: &Device,
        left: &mut Vec<(Values, String)>,
    ) {
        let one_thread = Options {
            threads: 1,
            ..self.options.clone()
        };
        let kernels: Vec<(usize, usize)> = (contenders.iter().enumerate())
            .flat_map(|(c, one)| {
                let mut mine = one.takes.clone();
                mine.sort_unstable();
                mine.dedup();
                mine.into_iter().map(move |instance| (c, instance))
            })
            .collect();
        let (next, archives) = (AtomicUsize::new(0), Mutex::new(vec![]));
        let worker = || {
            while let Some(&(c, i)) = kernels.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut sink = Sink::default();
                let kernel = &contenders[c].candidate.instances[i].1;
                let made =
                    bench::archive(kernel, &one_thread, machine, &mut sink).ok_or_else(|| {
                        let first = sink.finish().into_iter().next();
                        first.map_or_else(String::new, |d| d.message)
                    });
                let mut done = archives
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                done.push((c, i, made));
            }
        };
        (self.progress)("compile", 0, kernels.len());
        std::thread::scope(|scope| {
            for _ in 1..self.options.threads.min(kernels.len()) {
                scope.spawn(worker);
            }
            worker();
        });
        let archives = archives
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let code = |c: usize, i: usize, kernel: &ir::Kernel| -> Result<Kernel, String> {
            let made = archives.iter().find(|(a, b, _)| (*a, *b) == (c, i));
            let (_, _, made) = made.ok_or("it was not compiled")?;
            bench::loaded(made.as_ref()?, kernel, device)
        };
        let mut at = 0;
        contenders.retain_mut(|one| {
            let all: Result<Vec<Kernel>, String> = (one.takes.iter())
                .map(|&i| code(at, i, &one.candidate.instances[i].1))
                .collect();
            at += 1;
            match all {
                Ok(all) => one.code = all,
                Err(why) => left.push((one.candidate.values.clone(), why)),
            }
            !one.code.is_empty()
        });
    }
}

/// Whether two instances differ in nothing but the names of their arguments' values.
fn is_same_code(a: &ir::Kernel, b: &ir::Kernel) -> bool {
    let text = |k: &ir::Kernel| {
        tile::print::print(&ir::Kernel {
            generics: vec![],
            ..k.clone()
        })
    };
    text(a) == text(b)
}

fn value_of(dims: &[(String, i64)], name: &str) -> Option<i64> {
    dims.iter()
        .find(|(n, _)| n == name)
        .map(|(_, value)| *value)
}

struct Contender {
    /// What a launch takes without a choice: the first, which the others are set against.
    is_base: bool,
    candidate: Candidate,
    /// The instance that takes each case.
    takes: Vec<usize>,
    /// Code for each case.
    code: Vec<Kernel>,
    /// Seconds of each case.
    times: Vec<f64>,
    same_bits: bool,
}

/// Launches every contender's code on one case, in rounds of another order each.
fn race(
    at: usize,
    mut prepared: Prepared,
    contenders: &mut Vec<Contender>,
    how: &BenchOptions,
    left: &mut Vec<(Values, String)>,
    progress: &dyn Fn(usize),
) -> Result<(), String> {
    // The base's outputs and seconds.
    let mut expected: Option<(Vec<Tensor>, f64)> = None;
    let mut failed = None;
    contenders.retain_mut(|one| {
        prepared.set_code(one.code[at].clone());
        let launched = (prepared.launch(2)).and_then(|(times, _)| {
            let time = times.into_iter().fold(f64::INFINITY, f64::min);
            Ok((prepared.outputs()?, time))
        });
        let refused = match (launched, &expected) {
            (Ok(found), None) => {
                expected = Some(found);
                return true;
            }
            (Ok((_, time)), Some((_, base))) if time > HOPELESS * base => {
                format!("it takes {:.0} times as long", time / base)
            }
            (Ok((outputs, _)), Some((expected, _))) => {
                one.same_bits &= same(&outputs, expected);
                return true;
            }
            (Err(why), Some(_)) => why,
            (Err(why), None) => {
                failed = Some(why);
                return true;
            }
        };
        left.push((one.candidate.values.clone(), refused));
        false
    });
    if let Some(why) = failed {
        return Err(why);
    }
    let share = how.time.as_secs_f64() / ROUNDS as f64;
    let mut times: Vec<Vec<f64>> = vec![vec![]; contenders.len()];
    let mut empties = vec![];
    for round in 0..ROUNDS {
        let mut order: Vec<usize> = (0..contenders.len()).collect();
        order.rotate_left(round * contenders.len() / ROUNDS);
        if round % 2 == 1 {
            order.reverse();
        }
        progress(round);
        for turn in order {
            prepared.set_code(contenders[turn].code[at].clone());
            let (warm, _) = prepared.launch(1)?;
            let launches = ((share / bench::median(warm)) as usize).clamp(1, 20);
            let (more, empty) = prepared.launch(launches)?;
            times[turn].extend(more);
            empties.push(empty);
        }
    }
    let empty = bench::median(empties);
    for (one, times) in contenders.iter_mut().zip(times) {
        one.times.push((bench::median(times) - empty).max(1e-9));
    }
    Ok(())
}

fn same(a: &[Tensor], b: &[Tensor]) -> bool {
    a.len() == b.len()
        && (a.iter().zip(b))
            .all(|(a, b)| matches!((a.bytes(), b.bytes()), (Ok(a), Ok(b)) if a == b))
}
