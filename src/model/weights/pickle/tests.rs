//! The machine alone, on pickles too large or too many to keep as files.

use std::io::{Cursor, Read};

use super::{
    PickleError,
    machine::{MAX_OPCODES, MAX_STACK},
    read,
};
use crate::model::weights::tests::fixture;

/// The pickle of a good file.
fn pickle(name: &str) -> Vec<u8> {
    let file = std::fs::read(fixture(name)).unwrap();
    let mut archive = zip::ZipArchive::new(Cursor::new(file)).unwrap();
    let number =
        (0..archive.len()).find(|&i| archive.by_index(i).unwrap().name().unwrap().ends_with("data.pkl"));
    let mut bytes = Vec::new();
    archive.by_index(number.unwrap()).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_pickle_cut_anywhere_is_refused() {
    for name in ["good/under_state_dict.bin", "good/protocol_4.bin", "good/module.bin"] {
        let bytes = pickle(name);
        assert!(!read(&bytes).unwrap().is_empty());
        for end in 0..bytes.len() {
            let error = read(&bytes[..end]).unwrap_err();
            assert_eq!(error, PickleError::Truncated(end), "{name}");
        }
    }
}

#[test]
fn no_flipped_bit_leads_outside_a_storage() {
    for name in ["good/views.bin", "good/module.bin", "good/under_model.bin", "good/protocol_4.bin"] {
        let mut bytes = pickle(name);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            for tensor in read(&bytes).into_iter().flatten().map(|(_, tensor)| tensor) {
                assert!(tensor.entries.start >= 0 && tensor.entries.end <= tensor.storage_len, "{tensor:?}");
                let reached = tensor.shape.iter().zip(&tensor.strides).map(|(n, stride)| (n - 1) * stride);
                let last = tensor.entries.start + reached.sum::<i64>();
                assert!(tensor.shape.contains(&0) || last < tensor.entries.end, "{tensor:?}");
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn bombs_are_defused() {
    let repeated = |opcodes: &[u8], times: usize| [b"\x80\x02", &opcodes.repeat(times)[..], b"."].concat();
    assert_eq!(read(&repeated(b"N", MAX_STACK + 1)), Err(PickleError::Stack(MAX_STACK)));
    assert_eq!(read(&repeated(b"(", MAX_STACK + 1)), Err(PickleError::Stack(MAX_STACK)));
    assert_eq!(read(&repeated(b"(", 2 * MAX_OPCODES)), Err(PickleError::Stack(MAX_STACK)));
    // A frame says nothing; any number of them is still too many opcodes.
    assert_eq!(read(&repeated(b"\x80\x02", MAX_OPCODES)), Err(PickleError::Opcodes(MAX_OPCODES)));
    // Tuples in tuples, half a million deep, and a memo entry for each.
    let nested = [b"\x80\x02)", &b"\x85\x94".repeat(MAX_OPCODES / 2 - 10)[..], b"."].concat();
    assert_eq!(read(&nested), Err(PickleError::NoStateDict));
    // Dicts in dicts.
    let nested = [&b"}"[..], &b"}X\x01\0\0\0k".repeat(MAX_STACK / 2 - 10), b"."].concat();
    assert_eq!(read(&nested), Err(PickleError::NoStateDict));
    // The key of a memo entry is no size.
    assert_eq!(read(b"\x80\x02}r\xff\xff\xff\xff0."), Err(malformed(8)));
    assert_eq!(read(b"\x80\x02}r\xff\xff\xff\xffj\xff\xff\xff\xff."), Err(PickleError::NoStateDict));
}

/// POP, which torch.save never writes.
fn malformed(at: usize) -> PickleError {
    PickleError::Malformed { at, what: "opcode 0x30 is none that describes tensors".into() }
}

#[test]
fn a_long_tuple_is_not_copied_for_every_tensor() {
    let tuple = [b"(", &b"K\x01".repeat(60_000)[..], b"tq\x01"].concat();
    let storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQq\x02";
    let call = b"ctorch._utils\n_rebuild_tensor_v2\n(h\x02K\x00h\x01h\x01t";
    let bytes = [b"\x80\x02", &tuple[..], storage, call, b"R."].concat();
    let message = read(&bytes).unwrap_err().to_string();
    assert!(message.contains("up to 8 integers"), "{message}");
}
