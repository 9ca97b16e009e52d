//! A picture made of tiles: they are put side by side before their colours are converted, as libavif does it.
//!
//! Source: ISO/IEC 23008-12, 6.6.2.3.

use super::corrupt;
use crate::imaging::ImagingError;
use crate::imaging::yuv::{Plane, Planes};

/// How tiles of one size become a picture; what reaches beyond it is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    pub rows: usize,
    pub columns: usize,
    pub width: usize,
    pub height: usize,
}

impl Grid {
    /// Reads the item that stands for the picture.
    pub fn parse(item: &[u8]) -> Result<Self, ImagingError> {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
        let (size, rest) = match item {
            [0, flags, rest @ ..] => (if flags & 1 == 0 { 2 } else { 4 }, rest),
            _ => return Err(corrupt("its grid is of an unknown version")),
        };
        let [rows, columns, sizes @ ..] = rest else { return Err(corrupt("its grid breaks off")) };
        if sizes.len() < 2 * size {
            return Err(corrupt("its grid breaks off"));
        }
        let (width, height) = (number(&sizes[..size]), number(&sizes[size..2 * size]));
        Ok(Self { rows: usize::from(*rows) + 1, columns: usize::from(*columns) + 1, width, height })
    }

    /// Makes one picture of `tiles`, which come row by row.
    ///
    /// # Errors
    /// [`ImagingError::Corrupt`] where they do not fit together.
    pub fn compose(
        &self,
        tiles: impl Iterator<Item = Result<Planes, ImagingError>>,
    ) -> Result<Planes, ImagingError> {
        let mut picture: Option<Planes> = None;
        let mut first = None;
        for (index, tile) in tiles.enumerate() {
            let tile = tile?;
            if *first.get_or_insert_with(|| shape(&tile)) != shape(&tile) {
                return Err(corrupt("its tiles are not alike"));
            }
            self.check(&tile)?;
            let picture = picture.get_or_insert_with(|| self.blank(&tile));
            let place = (index / self.columns, index % self.columns);
            put(&mut picture.luma, &tile.luma, place);
            for (plane, tile) in picture.chroma.iter_mut().flatten().zip(tile.chroma.iter().flatten()) {
                put(plane, tile, place);
            }
        }
        picture.ok_or_else(|| corrupt("its grid is empty"))
    }

    /// Refuses tiles that do not cover the picture, or of which the last are not needed, or that share chroma samples.
    fn check(&self, tile: &Planes) -> Result<(), ImagingError> {
        let is_covered = |n: usize, tile: usize, all: usize| (n - 1) * tile < all && all <= n * tile;
        let Plane { width, height, .. } = tile.luma;
        let chroma = tile.chroma.as_ref().map_or(&tile.luma, |[blue, _]| blue);
        let is_apart = |n: usize, tile: usize, chroma: usize| n == 1 || tile.is_multiple_of(chroma);
        if is_covered(self.columns, width, self.width)
            && is_covered(self.rows, height, self.height)
            && is_apart(self.columns, width, chroma.width)
            && is_apart(self.rows, height, chroma.height)
        {
            return Ok(());
        }
        Err(corrupt(format!(
            "{} x {} tiles of {width}x{height} do not make {}x{}",
            self.columns, self.rows, self.width, self.height
        )))
    }

    fn blank(&self, tile: &Planes) -> Planes {
        let plane = |of: &Plane| {
            let across = |all: usize, of: usize, luma: usize| if of < luma { all.div_ceil(2) } else { all };
            let width = across(self.width, of.width, tile.luma.width);
            let height = across(self.height, of.height, tile.luma.height);
            Plane { samples: vec![0; width * height], width, height }
        };
        let chroma = tile.chroma.as_ref().map(|[blue, red]| [plane(blue), plane(red)]);
        Planes { luma: plane(&tile.luma), chroma, depth: tile.depth }
    }
}

/// What tiles of one picture have in common.
fn shape(tile: &Planes) -> (usize, usize, Option<(usize, usize)>, u32) {
    let chroma = tile.chroma.as_ref().map(|[blue, _]| (blue.width, blue.height));
    (tile.luma.width, tile.luma.height, chroma, tile.depth)
}

/// Copies what of a tile lies within the plane.
fn put(plane: &mut Plane, tile: &Plane, (row, column): (usize, usize)) {
    let (top, left) = (row * tile.height, column * tile.width);
    let width = tile.width.min(plane.width - left);
    let rows = plane.samples.chunks_exact_mut(plane.width).skip(top);
    for (to, from) in rows.zip(tile.samples.chunks_exact(tile.width)) {
        to[left..][..width].copy_from_slice(&from[..width]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_read_in_both_sizes() {
        let grid = Grid { rows: 2, columns: 3, width: 300, height: 200 };
        assert_eq!(Grid::parse(&[0, 0, 1, 2, 1, 44, 0, 200]), Ok(grid));
        assert_eq!(Grid::parse(&[0, 1, 1, 2, 0, 0, 1, 44, 0, 0, 0, 200]), Ok(grid));
        for broken in [&[][..], &[0], &[0, 0, 1], &[0, 1, 1, 2, 1, 44, 0, 200], &[1, 0, 1, 2, 1, 44, 0, 200]]
        {
            assert!(Grid::parse(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn tiles_that_do_not_fit_are_refused() {
        let plane = |width, height| Plane { samples: vec![1; width * height], width, height };
        let tile = |width: usize, height: usize| {
            let chroma = || plane(width.div_ceil(2), height.div_ceil(2));
            Ok(Planes { luma: plane(width, height), chroma: Some([chroma(), chroma()]), depth: 8 })
        };
        let compose = |width, height, tiles: Vec<_>| {
            Grid { rows: 1, columns: 2, width, height }.compose(tiles.into_iter())
        };
        let whole = compose(7, 3, vec![tile(4, 4), tile(4, 4)]).unwrap();
        assert_eq!(shape(&whole), (7, 3, Some((4, 2)), 8));
        assert!(whole.luma.samples.iter().all(|sample| *sample == 1));
        for (width, height, tiles) in [
            (9, 4, vec![tile(4, 4), tile(4, 4)]),
            (4, 4, vec![tile(4, 4), tile(4, 4)]),
            (8, 5, vec![tile(4, 4), tile(4, 4)]),
            (8, 4, vec![tile(4, 4), tile(5, 4)]),
            (9, 4, vec![tile(5, 4), tile(5, 4)]),
            (8, 4, vec![]),
        ] {
            assert!(matches!(compose(width, height, tiles), Err(ImagingError::Corrupt { .. })));
        }
    }
}
