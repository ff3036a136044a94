//! Asynchronous copies: tensor boxes and bulk ones, and the older `cp.async`. Each is done as late as it may be: a load when the barrier
//! is found complete, a store's reading when its group is waited for, its writing when that is waited for or the cluster ends.

use super::hopper::{Place, TensorBox};
use super::machine::{Breach, Cluster};
use super::order::{Agent, Clock, Time};
use super::ptx::PARAM_BASE;
use super::tensor_map::{self, TensorMap};
use tessera_device::cuda::driver::{MAP_RANK, MAP_WORDS};

/// On its way to a barrier.
pub enum Flight {
    Box {
        to: usize,
        map: TensorMap,
        at: [i64; MAP_RANK],
    },
    Bulk {
        to: usize,
        from: u64,
        bytes: usize,
    },
    /// An arrival when the thread's copies up to this one are done.
    Copies {
        thread: usize,
        serial: u64,
    },
}

impl Flight {
    /// 0 for arrivals.
    pub fn bytes(&self) -> i64 {
        match self {
            Flight::Box { map, .. } => map.box_bytes() as i64,
            Flight::Bulk { bytes, .. } => *bytes as i64,
            Flight::Copies { .. } => 0,
        }
    }
}

/// A thread's stores.
pub struct Bulk {
    /// Reads their sources.
    agent: Agent,
    open: Vec<Store>,
    groups: Vec<Group>,
}

struct Group {
    stores: Vec<Store>,
    committed: Time,
    /// The sources have been read.
    read: bool,
}

struct Store {
    to: Target,
    from: usize,
    bytes: usize,
    data: Vec<u8>,
}

enum Target {
    Box { map: TensorMap, at: [i64; MAP_RANK] },
    Bulk(u64),
}

/// A thread's `cp.async`.
pub struct Copies {
    agent: Agent,
    serial: u64,
    open: Vec<Copy>,
    groups: Vec<Vec<Copy>>,
}

struct Copy {
    serial: u64,
    to: usize,
    from: u64,
    bytes: usize,
    source_bytes: usize,
}

impl Cluster<'_> {
    // ---- tensor maps --------------------------------------------------------------------------------------

    pub fn map(&self, place: Place, thread: usize) -> Result<TensorMap, Breach> {
        let address = self.address(place, thread);
        let at = address.wrapping_sub(PARAM_BASE);
        let words = (at.is_multiple_of(64) && address >= PARAM_BASE)
            .then(|| {
                self.launch
                    .params
                    .get(at as usize..at as usize + 8 * MAP_WORDS)
            })
            .flatten();
        let map = words.and_then(|bytes| {
            let mut words = [0; MAP_WORDS];
            for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
                *word = u64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
            }
            tensor_map::decode(&words)
        });
        map.ok_or((thread, format!("no tensor map is at {address:#x}")))
    }

    fn tensor_box(
        &self,
        of: &TensorBox,
        thread: usize,
    ) -> Result<(TensorMap, [i64; MAP_RANK]), Breach> {
        self.has_waited(thread).map_err(|what| (thread, what))?;
        let map = self.map(of.map, thread)?;
        if map.rank != of.at.len() {
            return Err((
                thread,
                format!(
                    "{} coordinates in a tensor of rank {}",
                    of.at.len(),
                    map.rank
                ),
            ));
        }
        let mut at = [0; MAP_RANK];
        for (at, register) in at.iter_mut().zip(&of.at) {
            *at = i64::from(self.register(*register, thread) as i32);
        }
        // The hardware stops with an illegal instruction.
        if at[0] * map.element_bytes as i64 % 16 != 0 {
            return Err((
                thread,
                format!(
                    "a box starts at element {} of its rows, which is not at whole 16 bytes",
                    at[0]
                ),
            ));
        }
        Ok((map, at))
    }

    /// For each element of the box in order: its address in global memory, if it is in the tensor.
    fn elements(map: &TensorMap, at: &[i64; MAP_RANK]) -> Vec<Option<u64>> {
        let count: u64 = map.boxes.iter().product();
        (0..count)
            .map(|mut i| {
                let mut address = map.address;
                for (axis, start) in at.iter().enumerate() {
                    let x = start + (i % map.boxes[axis]) as i64;
                    i /= map.boxes[axis];
                    if x < 0 || x as u64 >= map.extents[axis] {
                        return None;
                    }
                    address += x as u64 * map.strides[axis];
                }
                Some(address)
            })
            .collect()
    }

    /// Where byte `i` of a box at `start` lies.
    fn place(&self, map: &TensorMap, start: usize, i: usize) -> usize {
        // Blocks' shared memories lie at multiples of what a swizzle spans.
        swizzled(start + i, map.swizzle as usize)
    }

    // ---- loads --------------------------------------------------------------------------------------------

    pub fn tensor_load(
        &mut self,
        to: Place,
        from: &TensorBox,
        barrier: Place,
        multicast: Option<usize>,
        thread: usize,
    ) -> Result<(), Breach> {
        let (map, at) = self.tensor_box(from, thread)?;
        let address = self.address(to, thread);
        self.load_to(
            address,
            map.box_bytes(),
            128,
            barrier,
            multicast,
            thread,
            &|to| Flight::Box { to, map, at },
        )
    }

    pub fn bulk_load(
        &mut self,
        to: Place,
        from: Place,
        bytes: u64,
        barrier: Place,
        multicast: Option<usize>,
        thread: usize,
    ) -> Result<(), Breach> {
        let (address, from) = (self.address(to, thread), self.address(from, thread));
        let bytes = u64::from(bytes as u32);
        if bytes % 16 != 0 || from % 16 != 0 {
            return Err((
                thread,
                format!("{bytes} bytes from {from:#x}: not in sixteens"),
            ));
        }
        self.has_waited(thread).map_err(|what| (thread, what))?;
        self.global(from, bytes).map_err(|what| (thread, what))?;
        let bytes = bytes as usize;
        self.load_to(address, bytes, 16, barrier, multicast, thread, &|to| {
            Flight::Bulk { to, from, bytes }
        })
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "as many operands has the instruction"
    )]
    fn load_to(
        &mut self,
        address: u64,
        bytes: usize,
        align: u64,
        barrier: Place,
        multicast: Option<usize>,
        thread: usize,
        flight: &dyn Fn(usize) -> Flight,
    ) -> Result<(), Breach> {
        let fault = |what: String| (thread, what);
        if !address.is_multiple_of(align) {
            return Err(fault(format!(
                "address {address:#x} is no multiple of {align}"
            )));
        }
        let to = self.cluster_shared(address, bytes).map_err(fault)?;
        let barrier = self.address(barrier, thread);
        let barrier = self.cluster_shared(barrier, 8).map_err(fault)?;
        let (rank, barrier_rank) = (to / self.shared_stride, barrier / self.shared_stride);
        if rank != barrier_rank {
            return Err(fault(
                "its destination and its barrier are in different blocks".to_owned(),
            ));
        }
        let ranks: Vec<usize> = match multicast {
            None => vec![rank],
            Some(mask) => {
                let mask = self.register(mask, thread) & 0xffff;
                let blocks = self.n / self.block;
                if mask == 0 || mask >> blocks != 0 {
                    return Err(fault(format!("the mask {mask:#x} of {blocks} blocks")));
                }
                (0..blocks).filter(|r| mask >> r & 1 == 1).collect()
            }
        };
        for r in ranks {
            let base = r * self.shared_stride;
            let (to, barrier) = (
                base + to % self.shared_stride,
                base + barrier % self.shared_stride,
            );
            self.known(barrier, thread, true)?;
            let agent = self.barriers[&barrier].agent;
            let written = self
                .memory
                .async_write(&self.order, thread, agent, to, bytes, false);
            written.map_err(fault)?;
            let barrier = self
                .barriers
                .get_mut(&barrier)
                .expect("`known` has found it");
            barrier.flights.push(flight(to));
        }
        Ok(())
    }

    /// Does what was under way; what those know who then wait for it.
    pub fn land(&mut self, flight: Flight, agent: Agent) -> Result<Clock, String> {
        self.order.time += 1;
        let mut clock = Clock::default();
        match flight {
            Flight::Copies { thread, serial } => {
                self.finish_copies(thread, |copy| copy.serial <= serial)?;
                return Ok(self.order.release(&[thread]));
            }
            Flight::Bulk { to, from, bytes } => {
                self.global(from, bytes as u64)?;
                // SAFETY: it is in an allocation, which lives through the launch.
                let data = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) };
                self.memory.land(&self.order, agent, None, to, data);
            }
            Flight::Box { to, map, at } => {
                let width = map.element_bytes as usize;
                let mut data = vec![0; map.box_bytes()];
                for (i, address) in Self::elements(&map, &at).into_iter().enumerate() {
                    let Some(address) = address else { continue };
                    self.global(address, width as u64)?;
                    let place = self.place(&map, to, i * width) - to;
                    // SAFETY: as above.
                    let element =
                        unsafe { std::slice::from_raw_parts(address as *const u8, width) };
                    data[place..place + width].copy_from_slice(element);
                }
                self.memory.land(&self.order, agent, None, to, &data);
            }
        }
        self.order.time += 1;
        clock.raise(agent, self.order.time);
        Ok(clock)
    }

    // ---- stores -------------------------------------------------------------------------------------------

    pub fn tensor_store(
        &mut self,
        to: &TensorBox,
        from: Place,
        thread: usize,
    ) -> Result<(), Breach> {
        let (map, at) = self.tensor_box(to, thread)?;
        let address = self.address(from, thread);
        self.store_from(
            address,
            map.box_bytes(),
            128,
            Target::Box { map, at },
            thread,
        )
    }

    pub fn bulk_store(
        &mut self,
        to: Place,
        from: Place,
        bytes: u64,
        thread: usize,
    ) -> Result<(), Breach> {
        let (to, from) = (self.address(to, thread), self.address(from, thread));
        let bytes = u64::from(bytes as u32);
        if bytes % 16 != 0 || to % 16 != 0 {
            return Err((thread, format!("{bytes} bytes to {to:#x}: not in sixteens")));
        }
        self.has_waited(thread).map_err(|what| (thread, what))?;
        self.global(to, bytes).map_err(|what| (thread, what))?;
        self.store_from(from, bytes as usize, 16, Target::Bulk(to), thread)
    }

    fn store_from(
        &mut self,
        address: u64,
        bytes: usize,
        align: u64,
        to: Target,
        thread: usize,
    ) -> Result<(), Breach> {
        let fault = |what: String| (thread, what);
        if !address.is_multiple_of(align) {
            return Err(fault(format!(
                "address {address:#x} is no multiple of {align}"
            )));
        }
        let from = self.shared(thread, address, bytes).map_err(fault)?;
        let order = &mut self.order;
        let bulk = self.bulk.entry(thread).or_insert_with(|| Bulk {
            agent: order.agent(),
            open: vec![],
            groups: vec![],
        });
        let read = self
            .memory
            .async_read(order, thread, bulk.agent, from, bytes);
        read.map_err(fault)?;
        bulk.open.push(Store {
            to,
            from,
            bytes,
            data: vec![],
        });
        Ok(())
    }

    pub fn bulk_commit(&mut self, thread: usize) {
        if let Some(bulk) = self.bulk.get_mut(&thread) {
            self.order.time += 1;
            bulk.groups.push(Group {
                stores: std::mem::take(&mut bulk.open),
                committed: self.order.time,
                read: false,
            });
        }
    }

    pub fn bulk_wait(&mut self, thread: usize, left: usize, read: bool) -> Result<(), Breach> {
        let Some(bulk) = self.bulk.get_mut(&thread) else {
            return Ok(());
        };
        let over = bulk.groups.len().saturating_sub(left);
        for group in &mut bulk.groups[..over] {
            if !group.read {
                group.read = true;
                for store in &mut group.stores {
                    store.data = self.memory.bytes[store.from..store.from + store.bytes].to_vec();
                }
            }
        }
        if let Some(last) = bulk.groups[..over].last() {
            self.order.learn(thread, bulk.agent, last.committed);
        }
        if !read {
            let groups: Vec<Group> = bulk.groups.drain(..over).collect();
            self.write(groups).map_err(|what| (thread, what))?;
        }
        Ok(())
    }

    fn write(&mut self, groups: Vec<Group>) -> Result<(), String> {
        for store in groups.into_iter().flat_map(|g| g.stores) {
            match store.to {
                Target::Bulk(to) => {
                    self.global(to, store.bytes as u64)?;
                    // SAFETY: it is in an allocation, which lives through the launch.
                    unsafe {
                        std::ptr::copy_nonoverlapping(
                            store.data.as_ptr(),
                            to as *mut u8,
                            store.bytes,
                        )
                    };
                }
                Target::Box { map, at } => {
                    let width = map.element_bytes as usize;
                    for (i, address) in Self::elements(&map, &at).into_iter().enumerate() {
                        let Some(address) = address else { continue };
                        self.global(address, width as u64)?;
                        let place = self.place(&map, store.from, i * width) - store.from;
                        // SAFETY: as above.
                        unsafe {
                            std::ptr::copy_nonoverlapping(
                                store.data[place..].as_ptr(),
                                address as *mut u8,
                                width,
                            )
                        };
                    }
                }
            }
        }
        Ok(())
    }

    /// What a thread leaves under way when it ends must not need shared memory.
    pub fn nothing_left(&self, thread: usize) -> Result<(), Breach> {
        if let Some(bulk) = self.bulk.get(&thread)
            && (!bulk.open.is_empty() || bulk.groups.iter().any(|g| !g.read))
        {
            return Err((
                thread,
                "it ends before its stores have read shared memory".to_owned(),
            ));
        }
        if let Some(copies) = self.copies.get(&thread)
            && (!copies.open.is_empty() || !copies.groups.is_empty())
        {
            return Err((thread, "it ends before its copies are done".to_owned()));
        }
        Ok(())
    }

    /// At the cluster's end: the last writes, and nothing else under way.
    pub fn finish(&mut self) -> Result<(), String> {
        let groups: Vec<Group> = self
            .bulk
            .values_mut()
            .flat_map(|b| b.groups.drain(..))
            .collect();
        self.write(groups)?;
        match self.barriers.iter().find(|(_, b)| !b.flights.is_empty()) {
            Some((at, _)) => Err(format!(
                "the blocks end before copies to the barrier at shared byte {at} are done"
            )),
            None => Ok(()),
        }
    }

    // ---- cp.async -----------------------------------------------------------------------------------------

    pub fn copy(
        &mut self,
        to: Place,
        from: Place,
        bytes: u64,
        source_bytes: Option<usize>,
        thread: usize,
    ) -> Result<(), Breach> {
        let fault = |what: String| (thread, what);
        let (to, from) = (self.address(to, thread), self.address(from, thread));
        let read = source_bytes.map_or(bytes, |r| u64::from(self.register(r, thread) as u32));
        if !matches!(bytes, 8 | 16) || to % bytes != 0 || from % bytes != 0 || read > bytes {
            return Err(fault(format!(
                "a copy of {read} of {bytes} bytes from {from:#x} to {to:#x}"
            )));
        }
        if read > 0 {
            self.has_waited(thread).map_err(fault)?;
            self.global(from, read).map_err(fault)?;
        }
        let to = self.shared(thread, to, bytes as usize).map_err(fault)?;
        let order = &mut self.order;
        let copies = self.copies.entry(thread).or_insert_with(|| Copies {
            agent: order.agent(),
            serial: 0,
            open: vec![],
            groups: vec![],
        });
        copies.serial += 1;
        let written =
            self.memory
                .async_write(order, thread, copies.agent, to, bytes as usize, true);
        written.map_err(fault)?;
        copies.open.push(Copy {
            serial: copies.serial,
            to,
            from,
            bytes: bytes as usize,
            source_bytes: read as usize,
        });
        Ok(())
    }

    pub fn copies_so_far(&self, thread: usize) -> u64 {
        self.copies.get(&thread).map_or(0, |c| c.serial)
    }

    pub fn copy_commit(&mut self, thread: usize) {
        if let Some(copies) = self.copies.get_mut(&thread) {
            let group = std::mem::take(&mut copies.open);
            copies.groups.push(group);
        }
    }

    pub fn copy_wait(&mut self, thread: usize, left: Option<usize>) -> Result<(), Breach> {
        let Some(copies) = self.copies.get(&thread) else {
            return Ok(());
        };
        let over = match left {
            None => copies.serial,
            Some(left) => {
                let over = copies.groups.len().saturating_sub(left);
                let last = copies.groups[..over]
                    .iter()
                    .flatten()
                    .map(|c| c.serial)
                    .max();
                last.unwrap_or(0)
            }
        };
        self.finish_copies(thread, |copy| copy.serial <= over)
            .map_err(|what| (thread, what))
    }

    fn finish_copies(
        &mut self,
        thread: usize,
        which: impl Fn(&Copy) -> bool,
    ) -> Result<(), String> {
        let Some(copies) = self.copies.get_mut(&thread) else {
            return Ok(());
        };
        let agent = copies.agent;
        let mut done = vec![];
        for group in copies.groups.iter_mut().chain([&mut copies.open]) {
            done.extend(group.extract_if(.., |c| which(c)));
        }
        // Groups count though they be empty, but for those at the start.
        let first = copies.groups.iter().position(|g| !g.is_empty());
        copies.groups.drain(..first.unwrap_or(copies.groups.len()));
        for copy in done {
            let mut data = vec![0; copy.bytes];
            if copy.source_bytes > 0 {
                self.global(copy.from, copy.source_bytes as u64)?;
                // SAFETY: it is in an allocation, which lives through the launch.
                let source = unsafe {
                    std::slice::from_raw_parts(copy.from as *const u8, copy.source_bytes)
                };
                data[..copy.source_bytes].copy_from_slice(source);
            }
            self.memory
                .land(&self.order, agent, Some(thread), copy.to, &data);
        }
        Ok(())
    }
}

/// The place of a byte in shared memory whose address is so permuted: 16-byte units within lines of 128 bytes.
pub fn swizzled(address: usize, swizzle: usize) -> usize {
    match swizzle {
        128 => address ^ (address >> 7 & 7) << 4,
        64 => address ^ (address >> 7 & 3) << 4,
        32 => address ^ (address >> 7 & 1) << 4,
        _ => address,
    }
}
