//! Where the pictures of a batch are collected on their way to a GPU.

use tch::{Device, Kind, TchError, Tensor};

use crate::domain::Pixels;

/// A block of memory that an engine fills anew for each batch. For a GPU it is page-locked: such memory it reads by
/// itself, in the order of its work, where any other is first copied by the driver while the GPU waits.
pub(super) struct Staging {
    device: Device,
    /// Bytes, as many as the largest batch had so far.
    block: Tensor,
    /// Whether page-locked memory can be had; it is limited for a container, say.
    can_lock: bool,
}

impl Drop for Staging {
    fn drop(&mut self) {
        // libtorch notes on the device when a page-locked block is free again, and ends the process where that fails, as
        // it does once the device is lost. Blocks end with the process anyway, or with a device.
        if self.device.is_cuda() {
            std::mem::forget(self.block.shallow_clone());
        }
    }
}

impl Staging {
    /// An empty block for `device`.
    pub fn new(device: Device) -> Self {
        let block = Tensor::empty([0], (Kind::Uint8, Device::Cpu));
        Self { device, block, can_lock: device.is_cuda() }
    }

    /// Pictures of one size to RGB8 `[batch, height, width, 3]` on the device. To be used up before the next call: a GPU may
    /// still be reading the block, and on the CPU, for tests, it is that itself.
    ///
    /// # Errors
    /// When memory is exhausted, here or on the device, or the pictures' sizes differ.
    pub fn upload(&mut self, pictures: &[&Pixels]) -> Result<Tensor, TchError> {
        let n_bytes = pictures.iter().map(|picture| picture.rgb8.len()).sum::<usize>();
        if self.block.numel() < n_bytes {
            self.block = self.allocate(n_bytes as i64)?;
        }
        // SAFETY: The block is contiguous and has as many bytes. No other tensor over it is in use: what the last call
        // gave is used up.
        let block = unsafe { std::slice::from_raw_parts_mut(self.block.data_ptr().cast::<u8>(), n_bytes) };
        let mut rest = block;
        for picture in pictures {
            let (filled, free) = rest.split_at_mut(picture.rgb8.len());
            filled.copy_from_slice(&picture.rgb8);
            rest = free;
        }
        let (height, width) = pictures.first().map_or((0, 0), |p| (i64::from(p.height), i64::from(p.width)));
        let size = [pictures.len() as i64, height, width, 3];
        let batch = self.block.f_narrow(0, 0, n_bytes as i64)?.f_view(size)?;
        match self.device {
            Device::Cpu => Ok(batch),
            device => batch.f_to_device_(device, Kind::Uint8, self.can_lock, false),
        }
    }

    fn allocate(&mut self, n_bytes: i64) -> Result<Tensor, TchError> {
        let block = Tensor::f_empty([n_bytes], (Kind::Uint8, Device::Cpu))?;
        if !self.can_lock {
            return Ok(block);
        }
        match block.f_pin_memory(self.device) {
            Ok(locked) => Ok(locked),
            Err(error) => {
                let error = error.to_string();
                let error = error.lines().next().unwrap_or_default();
                tracing::warn!(%error, n_bytes, "no page-locked memory: pictures go to the GPU more slowly");
                self.can_lock = false;
                Ok(block)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::cuda_devices;

    fn picture(height: u32, width: u32, seed: usize) -> Pixels {
        let rgb8 = (0..height * width * 3).map(|i| (i as usize * 7 + seed * 31) as u8).collect();
        Pixels { rgb8, height, width }
    }

    fn bytes(tensor: &Tensor) -> Vec<u8> {
        Vec::try_from(tensor.to_device(Device::Cpu).contiguous().view([-1])).unwrap()
    }

    /// Also on a GPU, where there is one.
    #[test]
    fn batches_of_any_size_follow_one_another() {
        let cuda = cuda_devices().is_ok().then_some(Device::Cuda(0));
        for device in [Device::Cpu].into_iter().chain(cuda) {
            let mut staging = Staging::new(device);
            for (n, height, width) in [(3_usize, 4, 5), (1, 2, 2), (4, 6, 6), (4, 6, 6), (2, 4, 5)] {
                let pictures: Vec<_> = (0..n).map(|seed| picture(height, width, seed + n)).collect();
                let batch = staging.upload(&pictures.iter().collect::<Vec<_>>()).unwrap();
                assert_eq!(batch.size(), [n as i64, i64::from(height), i64::from(width), 3]);
                assert_eq!(batch.device(), device);
                let expected: Vec<u8> = pictures.iter().flat_map(|picture| &picture.rgb8).copied().collect();
                assert_eq!(bytes(&batch), expected);
            }
            assert_eq!(staging.block.numel(), 4 * 6 * 6 * 3, "the largest batch's");
            assert!(device == Device::Cpu || staging.block.is_pinned(device));
        }
    }

    #[test]
    fn pictures_of_several_sizes_are_no_batch() {
        let (one, other) = (picture(2, 3, 0), picture(3, 3, 0));
        assert!(Staging::new(Device::Cpu).upload(&[&one, &other]).is_err());
    }
}
