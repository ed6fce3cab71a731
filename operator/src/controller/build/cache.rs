//! The volume that holds the model's files.

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements,
};

use super::{metadata, names, of_kind};
use crate::controller::object::{Kind, Object};
use crate::controller::observe::Observed;
use crate::controller::same;
use crate::controller::validate::{Files, ValidModel};

pub(super) fn claim(model: &ValidModel, observed: &Observed) -> Option<Object> {
    let Files::Cached { download, cache } = &model.files else { return None };
    let name = names::cache(&model.name);
    let mut labels = names::labels(&model.name);
    let mut metadata = metadata(model, name, labels.clone());
    if cache.retain {
        // Without an owner it stays when the model goes. The label tells a later model of
        // the same name whether it is of the same source; the annotation tells this one that
        // it is its own, whatever its source becomes.
        labels.insert(names::SOURCE_LABEL.into(), download.key());
        metadata.annotations = Some([(names::RETAINED_BY_ANNOTATION.to_owned(), model.uid.clone())].into());
        metadata.labels = Some(labels);
        metadata.owner_references = None;
    }
    // One that somebody has grown stays as large: claims cannot shrink.
    let there =
        observed.cache(&model.name).and_then(|claim| claim.spec?.resources?.requests?.remove("storage"));
    let size = there.filter(|there| same::is_more(there, &cache.size)).unwrap_or_else(|| cache.size.clone());
    Some(of_kind(
        Kind::PersistentVolumeClaim,
        &PersistentVolumeClaim {
            metadata,
            spec: Some(PersistentVolumeClaimSpec {
                access_modes: Some(cache.access_mode_names()),
                resources: Some(VolumeResourceRequirements {
                    requests: Some([("storage".to_owned(), size)].into()),
                    limits: None,
                }),
                // Without one, the cluster fills in its default class.
                storage_class_name: cache.storage_class_name.clone(),
                ..PersistentVolumeClaimSpec::default()
            }),
            status: None,
        },
    ))
}
