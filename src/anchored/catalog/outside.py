"""Out-of-distribution sets of the literature: the archives of ODIN, textures, scenes, NINCO."""

from __future__ import annotations

from anchored.catalog.row import DataSet, File

# The ODIN copies (Liang, Li and Srikant 2018): links in the README of facebookresearch/odin, md5 in pytorch-ood's
# dataset/img/odin.py (LSUN, Tiny ImageNet) and in the package ``detectors``, data/isun.py (iSUN; it states the count of
# 8,925 as well). Folders inside: pytorch-ood's ``base_folder``, and iSUN_patches in many public loaders. No source that
# we found states the archives' sizes.
_LSUN_R = DataSet(
    name="lsun-r",
    title="LSUN (R)",
    classes=("scene",),
    channels=3,
    size=32,
    train=0,
    test=10_000,
    roles=("ood",),
    licence="none stated for the copy; LSUN: research use",
    citation="Yu et al. 2015, arXiv 1506.03365; resized copy of Liang, Li and Srikant 2018, arXiv 1706.02690",
    reader="flat_folder",
    file_classes=1,
    folder="lsun-r",
    parts=(
        File(
            name="LSUN_resize.tar.gz",
            hash="md5:278b7b31c8cb7e804a1465a8ce03a2dc",
            urls=("https://www.dropbox.com/s/moqh2wh8696c3yl/LSUN_resize.tar.gz?dl=1",),
            makes=("LSUN_resize",),
        ),
    ),
    needs=("LSUN_resize",),
    images="LSUN_resize",
)

#: This module's rows.
ROWS = (_LSUN_R,)
