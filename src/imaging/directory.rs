//! The first directory of a TIFF file, which EXIF data is as well.
//!
//! Source: TIFF 6.0, section 2: a header of 8 bytes with the place of the first directory, which is a count and entries
//! of 12 bytes (tag, type, count, value or where the values are).

/// Types of values.
const SHORT: u16 = 3;
const LONG: u16 = 4;

/// An entry of the directory.
struct Entry {
    at: usize,
    order: Order,
}

/// The order of bytes.
#[derive(Clone, Copy)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn short(self, file: &[u8], at: usize) -> Option<u16> {
        let bytes = *file.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        })
    }

    fn long(self, file: &[u8], at: usize) -> Option<u32> {
        let bytes = *file.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        })
    }
}

/// The only value of a tag, if it is a whole number.
pub(super) fn number(file: &[u8], tag: u16) -> Option<u32> {
    let Entry { at, order } = find(file, tag)?;
    match (order.short(file, at + 2)?, order.long(file, at + 4)?) {
        (SHORT, 1) => order.short(file, at + 8).map(u32::from),
        (LONG, 1) => order.long(file, at + 8),
        _ => None,
    }
}

/// The values of a tag of bytes, of which there are more than fit into its entry.
pub(super) fn bytes(file: &[u8], tag: u16) -> Option<&[u8]> {
    let Entry { at, order } = find(file, tag)?;
    let (count, place) = (order.long(file, at + 4)? as usize, order.long(file, at + 8)? as usize);
    file.get(place..place.checked_add(count)?)
}

/// Puts another value in place of the only one of a tag.
pub(super) fn set(file: &mut [u8], tag: u16, value: u16) -> Option<()> {
    let Entry { at, order } = find(file, tag)?;
    let kind = order.short(file, at + 2)?;
    let (short, long) = match order {
        Order::Little => (value.to_le_bytes(), u32::from(value).to_le_bytes()),
        Order::Big => (value.to_be_bytes(), u32::from(value).to_be_bytes()),
    };
    let value: &[u8] = if kind == LONG { &long } else { &short };
    file.get_mut(at + 8..)?.get_mut(..value.len())?.copy_from_slice(value);
    Some(())
}

fn find(file: &[u8], tag: u16) -> Option<Entry> {
    let order = match file.first_chunk()? {
        b"II*\0" => Order::Little,
        b"MM\0*" => Order::Big,
        _ => return None,
    };
    let directory = order.long(file, 4)? as usize;
    let n_entries = usize::from(order.short(file, directory)?);
    let mut entries = (0..n_entries).map(|i| directory + 2 + 12 * i);
    let at = entries.find(|&entry| order.short(file, entry) == Some(tag))?;
    Some(Entry { at, order })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of one number, in either order.
    fn file(kind: u16, count: u32, value: [u8; 4]) -> [Vec<u8>; 2] {
        let little =
            [&b"II*\0\x08\0\0\0\x01\0\x12\x01"[..], &kind.to_le_bytes(), &count.to_le_bytes(), &value];
        let big = [&b"MM\0*\0\0\0\x08\0\x01\x01\x12"[..], &kind.to_be_bytes(), &count.to_be_bytes(), &value];
        [little.concat(), big.concat()]
    }

    #[test]
    fn a_number_is_read_and_replaced() {
        for (kind, values) in [(SHORT, [[6, 0, 0, 0], [0, 6, 0, 0]]), (LONG, [[6, 0, 0, 0], [0, 0, 0, 6]])] {
            for (i, value) in values.into_iter().enumerate() {
                let mut file = file(kind, 1, value)[i].clone();
                assert_eq!(number(&file, 0x112), Some(6), "{file:?}");
                assert_eq!(number(&file, 0x113), None);
                set(&mut file, 0x112, 0x301).unwrap();
                assert_eq!(number(&file, 0x112), Some(0x301), "{file:?}");
            }
        }
    }

    #[test]
    fn what_is_broken_has_no_number() {
        let [whole, _] = file(SHORT, 1, [6, 0, 0, 0]);
        for end in 0..whole.len() - 2 {
            assert_eq!(number(&whole[..end], 0x112), None, "{end}");
            assert_eq!(bytes(&whole[..end], 0x112), None, "{end}");
        }
        for broken in [&file(SHORT, 2, [6, 0, 0, 0])[0], &file(1, 1, [6, 0, 0, 0])[0]] {
            assert_eq!(number(broken, 0x112), None);
        }
        let [far, _] = file(1, u32::MAX, [0xff; 4]);
        assert_eq!(bytes(&far, 0x112), None);
    }
}
