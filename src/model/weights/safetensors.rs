//! What a safetensors file holds, from its header.

use safetensors::SafeTensors;

use super::index::{Layout, Layouts, contiguous};
use crate::model::ModelError;

/// The tensors of a safetensors file. The crate checks every range against the file's length.
///
/// # Errors
/// [`ModelError::Weights`] when the header is not as it should be.
pub(super) fn read(bytes: &[u8], place: &str) -> Result<Layouts, ModelError> {
    let broken = |reason| ModelError::Weights { file: place.into(), reason };
    let cut = |error| broken(format!("{error}; it was cut off or damaged, so download it again"));
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(cut)?;
    // Eight bytes hold the header's length.
    let data = header + 8;
    let mut layouts = Layouts::new();
    for (name, info) in metadata.tensors() {
        let sizes = info.shape.iter().map(|&n| i64::try_from(n).ok()).collect::<Option<Vec<_>>>();
        let layout = sizes.and_then(|shape| {
            let strides = contiguous(&shape)?;
            let bytes = data + info.data_offsets.0..data + info.data_offsets.1;
            Some(Layout { dtype: info.dtype, shape, strides, bytes })
        });
        let too_large = || broken(format!("{} has more entries than can be counted", super::shown(&name)));
        layouts.insert(name.clone(), layout.ok_or_else(too_large)?);
    }
    Ok(layouts)
}
