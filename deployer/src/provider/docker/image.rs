//! The image of the agent: made from the program of this process, without pulling anything, or pulled
//! from a registry.

use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::{CreateImageOptionsBuilder, RemoveImageOptions};
use futures_util::stream::TryStreamExt;
use sha2::{Digest, Sha256};
use sky_chord::Id;

use super::{IMAGE, label};
use crate::error::{During, Error, Result};
use crate::provider::Site;

/// How long the program may take to an engine, perhaps over a slow line that several share: the engine
/// answers when all of it is there, and a second try would begin anew.
const SENT_WITHIN: Duration = Duration::from_secs(3600);

/// The name of the image of this program. The tag is made from its contents.
pub(super) fn name(program: &[u8]) -> String {
    format!("{IMAGE}:{}", &Id::hash(program).to_string()[..16])
}

/// Imports the program unless the engine has it.
pub(super) async fn import(docker: &Docker, site: &Site) -> Result<String> {
    let program = static_program(site)?;
    let tag = name(&program);
    if docker.inspect_image(&tag).await.is_ok() {
        return Ok(tag);
    }
    let failed = || "cannot make the image of the agent";
    let mut archive = tar::Builder::new(Vec::with_capacity(program.len() + 4096));
    let mut header = tar::Header::new_ustar();
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    archive.append_data(&mut header, "sky-agent", program.as_slice()).during(failed)?;
    let archive = archive.into_inner().during(failed)?;
    let digest = format!("sha256:{:x}", Sha256::digest(&archive));
    let (repo, version) = tag.split_once(':').unwrap_or((&tag, "latest"));
    let options = CreateImageOptionsBuilder::new()
        .from_src("-")
        .repo(repo)
        .tag(version)
        .changes(vec![
            r#"ENTRYPOINT ["/sky-agent"]"#.to_owned(),
            format!("LABEL {}={IMAGE}", label::IMAGE),
        ])
        .build();
    let body = bollard::body_full(archive.into());
    let patient = docker.clone().with_timeout(SENT_WITHIN);
    let steps = patient.create_image(Some(options), Some(body), None);
    steps.try_collect::<Vec<_>>().await.during(failed)?;
    // The engine names a layer by the hash of what arrived.
    let made = docker.inspect_image(&tag).await.during(failed)?;
    let layers = made.root_fs.and_then(|root| root.layers).unwrap_or_default();
    if layers != [digest.as_str()] {
        let _ = docker.remove_image(&tag, None::<RemoveImageOptions>, None).await;
        return Err(Error::new("the image of the agent did not arrive as it was sent")
            .because(format!("sent {digest}, arrived {}", layers.join(", ")))
            .hint("the same command again sends it anew"));
    }
    Ok(tag)
}

/// Pulls an image unless the engine has it.
pub(super) async fn pull(docker: &Docker, image: &str) -> Result<String> {
    if docker.inspect_image(image).await.is_ok() {
        return Ok(image.to_owned());
    }
    // Without a tag the engine would pull all there are.
    let name = image.rsplit('/').next().unwrap_or(image);
    let whole =
        if name.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") };
    let options = CreateImageOptionsBuilder::new().from_image(&whole).build();
    let steps = docker.create_image(Some(options), None, None);
    steps.try_collect::<Vec<_>>().await.map_err(|error| {
        let limited = error.to_string().contains("toomanyrequests");
        let error = Error::caused(format!("the engine cannot pull {image}"), &error);
        error.hint(if limited {
            "the registry limits anonymous pulls: use a mirror, or send the image by ssh"
        } else {
            "check the name, and that the machine reaches the registry"
        })
    })?;
    Ok(image.to_owned())
}

/// The bytes of the program, if it can run in an empty container.
pub(super) fn static_program(site: &Site) -> Result<Vec<u8>> {
    let bytes = site.program_bytes()?;
    match has_interpreter(&bytes) {
        Some(false) => Ok(bytes),
        Some(true) => Err(Error::new(
            "this program needs a dynamic loader, so it cannot run in an empty container",
        )
        .hint(
            "build it without RUSTFLAGS in the environment (they replace those of the project, \
               which link statically), or use `provider: process`",
        )),
        None => Err(Error::new("this program is not a Linux program, so containers cannot run it")
            .hint("use `provider: process`")),
    }
}

/// Whether an ELF program asks for a loader (a program header of type PT_INTERP); none if it is not
/// a 64-bit little-endian ELF file.
fn has_interpreter(elf: &[u8]) -> Option<bool> {
    let number = |at: usize, length: usize| {
        let bytes = elf.get(at..at.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0usize, |high, byte| (high << 8) | usize::from(*byte)))
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (headers, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let kinds: Option<Vec<usize>> =
        (0..count).map(|i| number(headers.checked_add(i.checked_mul(size)?)?, 4)).collect();
    Some(kinds?.contains(&3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_need_a_loader_are_recognised() {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 1;
        assert_eq!(has_interpreter(&elf), Some(false));
        elf[64] = 3;
        assert_eq!(has_interpreter(&elf), Some(true));
        assert_eq!(has_interpreter(&elf[..66]), None);
        assert_eq!(has_interpreter(b"#!/bin/sh"), None);
    }
}
