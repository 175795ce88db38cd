//! Values that are made and dropped all the time, by a handle that outlives them.

use std::marker::PhantomData;

/// Names a value; a stale one finds nothing.
#[derive(Debug)]
pub struct Handle<T> {
    place: u32,
    turn: u32,
    of: PhantomData<fn() -> T>,
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Handle<T> {}

impl<T> Handle<T> {
    /// As a number, for what keeps it without knowing what it names.
    pub fn pack(self) -> u64 {
        u64::from(self.place) << 32 | u64::from(self.turn)
    }

    /// Back from [`Handle::pack`].
    pub fn unpack(packed: u64) -> Self {
        // The halves.
        #[allow(clippy::cast_possible_truncation)]
        let (place, turn) = ((packed >> 32) as u32, packed as u32);
        Self { place, turn, of: PhantomData }
    }
}

/// The values.
#[derive(Debug)]
pub struct Slab<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Adds a value.
    pub fn insert(&mut self, value: T) -> Handle<T> {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        let (turn, slot) = &mut self.places[place as usize];
        *slot = Some(value);
        Handle { place, turn: *turn, of: PhantomData }
    }

    /// The value, unless it was removed.
    pub fn get(&self, handle: Handle<T>) -> Option<&T> {
        let (turn, value) = self.places.get(handle.place as usize)?;
        value.as_ref().filter(|_| *turn == handle.turn)
    }

    /// The value, to be changed.
    pub fn get_mut(&mut self, handle: Handle<T>) -> Option<&mut T> {
        let (turn, value) = self.places.get_mut(handle.place as usize)?;
        value.as_mut().filter(|_| *turn == handle.turn)
    }

    /// Takes the value out.
    pub fn remove(&mut self, handle: Handle<T>) -> Option<T> {
        let (turn, value) = self.places.get_mut(handle.place as usize)?;
        if *turn != handle.turn {
            return None;
        }
        let value = value.take()?;
        *turn += 1;
        self.free.push(handle.place);
        Some(value)
    }

    /// Every value, in the order of their places.
    pub fn iter(&self) -> impl Iterator<Item = (Handle<T>, &T)> {
        self.places.iter().enumerate().filter_map(|(place, (turn, value))| {
            let handle = Handle { place: u32::try_from(place).unwrap_or(u32::MAX), turn: *turn, of: PhantomData };
            Some((handle, value.as_ref()?))
        })
    }
}
