"""Write a dataset in ArrayRecord format for training, from TFDS, ImageNet or your own images."""

import argparse
import itertools
import shlex
import signal
import statistics
from collections.abc import Mapping
from typing import NamedTuple

from mambaout_jax.cli.arguments import LOADING, integer, positive_number
from mambaout_jax.errors import print_error, printable
from mambaout_jax.machine import describe_fault
from mambaout_jax.process import announced, exit_on_signals
from mambaout_jax.words import count, listed

EPILOG = """\
  prepare NAME                      a TFDS dataset (NAME, NAME/CONFIG or NAME/CONFIG:VERSION), or digits
  prepare pathfinder[/32|/64|/128]  are two dots joined by a dashed curve? Generated in minutes
  prepare imagenet --tars DIR       ImageNet from ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
  prepare imagenet --folder DIR     ImageNet from DIR/train/n01440764/*.JPEG and DIR/val
  prepare imagenet --tfrecord DIR   ImageNet from TFRecords that TFDS prepared
  prepare folder DIR                images in DIR/{train,val,test}/CLASS, or in DIR/CLASS (--val 0.1 splits them)
  prepare scenes[/128|/256|/512|/cue_128]  digits on photographs, for segmentation. Generated in a minute
  prepare segmentation DIR          DIR/{train,val,test}/{images,masks}, or DIR/{images,masks}; DIR/classes.txt
  prepare ade20k --zip FILE         ADE20K from ADEChallengeData2016.zip
  prepare ade20k --folder DIR       ADE20K from the folder ADEChallengeData2016
  prepare coco --root DIR           COCO 2017 from DIR/train2017, DIR/val2017 and DIR/annotations
  prepare coco-format DIR --annotations FILE   images in DIR with objects, in COCO's format

Rerun the same command to resume after an interruption."""


class _Form(NamedTuple):
    """The arguments of a command.

    Args:
        usage: the required ones, for messages.
        required: groups of alternatives, of which exactly one has to be given.
        optional: the others.
    """

    usage: str = ""
    required: tuple[tuple[str, ...], ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """All arguments that it takes."""
        return *itertools.chain(*self.required), *self.optional


_WRITING = "workers", "overwrite"
_OF_IMAGES = "called", "val", "skip_bad", *_WRITING
# By name: what stands for files of the user.
FORMS: Mapping[str, _Form] = {
    "imagenet": _Form("--tars DIR, --folder DIR or --tfrecord DIR", (("tars", "folder", "tfrecord"),), _WRITING),
    "folder": _Form("the folder of the images", (("source",),), _OF_IMAGES),
    "segmentation": _Form("the folder of the images", (("source",),), _OF_IMAGES),
    "ade20k": _Form("--zip FILE or --folder DIR", (("zip", "folder"),), _WRITING),
    "coco": _Form("--root DIR", (("root",),), _WRITING),
    "coco-format": _Form(
        "the folder of the images and --annotations FILE",
        (("source",), ("annotations",)),
        ("val_annotations", *_OF_IMAGES),
    ),
}
# Arguments that are not written as their names are.
_WRITTEN = {"source": "a folder", "called": "--name"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("name", metavar="KIND_OR_DATASET", help=f"{', '.join(FORMS)}, or the name of a dataset")
    parser.add_argument("source", metavar="DIR", nargs="?", help=f"your images ({_takers('source')})")
    parser.add_argument("--tars", metavar="DIR", help="folder of the two official tars (`imagenet`)")
    parser.add_argument(
        "--folder",
        metavar="DIR",
        help="folder with train/ and val/ (`imagenet`), or ADEChallengeData2016 (`ade20k`)",
    )
    parser.add_argument("--tfrecord", metavar="DIR", help="folder of TFRecords that TFDS prepared (`imagenet`)")
    parser.add_argument("--zip", metavar="FILE", help="ADEChallengeData2016.zip (`ade20k`)")
    parser.add_argument("--root", metavar="DIR", help="folder of COCO 2017 (`coco`)")
    parser.add_argument("--annotations", metavar="FILE", help="annotation file in COCO's format (`coco-format`)")
    parser.add_argument(
        "--val-annotations", metavar="FILE", help="annotation file of a validation split (`coco-format`)"
    )
    parser.add_argument("--name", dest="called", metavar="NAME", help=f"name of the new dataset ({_takers('called')})")
    parser.add_argument(
        "--val",
        type=_fraction,
        default=0.0,
        metavar="FRACTION",
        help=f"fraction of the images for a validation split ({_takers('val')}; per class with `folder`)",
    )
    parser.add_argument("--skip-bad", action="store_true", help=f"leave out damaged files ({_takers('skip_bad')})")
    parser.add_argument("--overwrite", action="store_true", help=f"replace the dataset ({_takers('overwrite')})")
    parser.add_argument("--data-dir", help="folder or bucket for prepared datasets (default: that of TFDS)")
    parser.add_argument(
        "--workers",
        type=integer(1),
        help=f"number of writing processes ({_takers('workers')}; default: one per core)",
    )


def _takers(argument: str) -> str:
    """Return the names whose form has an argument."""
    return ", ".join(f"`{name}`" for name, form in FORMS.items() if argument in form.arguments)


def _fraction(text: str) -> float:
    value = positive_number(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction between 0 and 1")
    return value


def run(args: argparse.Namespace) -> int:
    """Prepare the dataset and print its path; return 1 if a download, an upload or a write fails."""
    from mambaout_jax.data import DataError

    if fault := _find_fault(args):
        raise DataError(fault)
    try:
        with exit_on_signals(signal.SIGTERM, signal.SIGHUP):
            _prepare(args)
    except OSError as error:
        return print_error(describe_fault(error) or error, 1)
    return 0


def _find_fault(args: argparse.Namespace) -> str:
    """Return a sentence about arguments that do not fit together; empty if they do."""
    form = FORMS.get(args.name, _Form())
    known = dict.fromkeys(itertools.chain(*(other.arguments for other in FORMS.values())))
    given = [name for name in known if getattr(args, name)]
    if any(len(set(group) & set(given)) != 1 for group in form.required):
        return f"prepare {args.name} requires {form.usage}"
    extra = [_WRITTEN.get(name, f"--{name.replace('_', '-')}") for name in given if name not in form.arguments]
    if extra:
        return f"prepare {args.name} does not take {listed(extra)}; leave {'them' if len(extra) > 1 else 'it'} out"
    if args.val and args.val_annotations:
        return "--val and --val-annotations both make a validation split; leave out one of them"
    return ""


def _prepare(args: argparse.Namespace) -> None:
    with announced(LOADING):
        from mambaout_jax.data.prepare import (
            prepare_ade20k,
            prepare_coco,
            prepare_coco_format,
            prepare_dataset,
            prepare_folder,
            prepare_imagenet,
            prepare_segmentation,
        )
        from mambaout_jax.data.workers import count_cores

    data_dir, workers = args.data_dir, args.workers or count_cores()
    if args.name not in FORMS:
        print(f"{args.name} is prepared in {printable(prepare_dataset(args.name, data_dir))}")
        return
    if args.name == "imagenet":
        kind = next(kind for kind in FORMS["imagenet"].required[0] if getattr(args, kind))
        prepared = prepare_imagenet(kind, getattr(args, kind), data_dir, workers, overwrite=args.overwrite)
    elif args.name == "ade20k":
        zipped = bool(args.zip)
        prepared = prepare_ade20k(args.zip or args.folder, data_dir, workers, zipped=zipped, overwrite=args.overwrite)
    elif args.name == "coco":
        prepared = prepare_coco(args.root, data_dir, workers, overwrite=args.overwrite)
    else:
        images = {"skip_bad": args.skip_bad, "overwrite": args.overwrite}
        if args.name == "coco-format":
            validation = args.val_annotations or args.val or None
            prepared = prepare_coco_format(
                args.source, args.annotations, args.called, data_dir, workers, validation=validation, **images
            )
        else:
            prepare = {"folder": prepare_folder, "segmentation": prepare_segmentation}[args.name]
            prepared = prepare(args.source, args.called, data_dir, workers, validation=args.val, **images)
    _report(prepared)


def _report(prepared) -> None:
    already = "" if prepared.images_per_class else "already "
    print(f"{prepared.name} is {already}prepared in {printable(prepared.folder)}")
    if not prepared.images_per_class:
        print("  from the same images and classes; --overwrite writes it again")
    for split, num_images in prepared.num_images.items():
        line = f"  {split}: {count(num_images, 'image')} of {count(prepared.num_classes, 'class')}"
        if prepared.images_per_class:
            counts = prepared.images_per_class[split]
            line += f"; {min(counts):,} "
            if min(counts) < max(counts):
                line += f"to {max(counts):,}, median {statistics.median(counts):,.0f}, "
            line += "per class"
        print(line)
    if prepared.num_converted:
        print(f"  converted {count(prepared.num_converted, 'image')} to RGB JPEG")
    if prepared.num_skipped:
        print(f"  skipped {count(prepared.num_skipped, 'invalid image')}")
    train, validation = "train", next((name for name in ("validation", "test") if name in prepared.num_images), None)
    if validation is None:
        num_images = prepared.num_images["train"]
        if round(90 * num_images / 100) < num_images:  # as TFDS rounds
            train, validation = "train[:90%]", "train[90%:]"
            print("  without a validation split; rerun the same command with --val 0.1 --overwrite to make one")
        else:
            validation = "train"
            print(f"  {count(num_images, 'image')}: too few for a validation split; using the training images")
    flags = {"name": prepared.name, "data_dir": prepared.data_dir, "train_split": train, "validation_split": validation}
    print("Use it with:")
    print(" ", printable(shlex.join(f"--config.data.{key}={value}" for key, value in flags.items())))
