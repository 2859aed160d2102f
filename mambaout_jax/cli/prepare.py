"""Write a dataset in ArrayRecord format for training, from TFDS, ImageNet or your own images."""

import argparse
import shlex
import signal
import statistics

from mambaout_jax.cli.arguments import LOADING, integer, positive_number
from mambaout_jax.errors import print_error, printable
from mambaout_jax.machine import describe_fault
from mambaout_jax.process import announced, exit_on_signals
from mambaout_jax.words import count

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
  prepare coco-format DIR --json FILE   images in DIR with objects, from a file in COCO's format

Rerun the same command to resume after an interruption."""
KINDS = ("tars", "folder", "tfrecord")
# Names that stand for files of the user.
OWN = ("imagenet", "folder", "segmentation", "ade20k", "coco", "coco-format")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("name", metavar="KIND_OR_DATASET", help=f"{', '.join(OWN)}, or the name of a dataset")
    parser.add_argument(
        "source", metavar="DIR", nargs="?", help="your images (`folder`, `segmentation`, `coco-format`)"
    )
    for kind in KINDS:
        also = ", or of ADE20K (`ade20k`)" if kind == "folder" else ""
        parser.add_argument(f"--{kind}", metavar="DIR", help=f"location and format of ImageNet (`imagenet`){also}")
    parser.add_argument("--zip", metavar="FILE", help="ADEChallengeData2016.zip (`ade20k`)")
    parser.add_argument("--root", metavar="DIR", help="folder of COCO 2017 (`coco`)")
    parser.add_argument("--json", metavar="FILE", help="annotations in COCO's format (`coco-format`)")
    parser.add_argument("--val-json", metavar="FILE", help="annotations of a validation split (`coco-format`)")
    parser.add_argument(
        "--name",
        dest="called",
        metavar="NAME",
        help="name of the new dataset (`folder`, `segmentation`, `coco-format`)",
    )
    parser.add_argument(
        "--val",
        type=_fraction,
        default=0.0,
        metavar="FRACTION",
        help="fraction of the images for a validation split (`folder`, `segmentation`, `coco-format`; per class with "
        "`folder`)",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out damaged files (`folder`, `segmentation`, `coco-format`)"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help=f"replace the dataset ({', '.join(f'`{name}`' for name in OWN)})",
    )
    parser.add_argument("--data-dir", help="folder or bucket for prepared datasets (default: that of TFDS)")
    parser.add_argument(
        "--workers",
        type=integer(1),
        help=f"number of writing processes ({', '.join(f'`{name}`' for name in OWN)}; default: one per core)",
    )


def _fraction(text: str) -> float:
    value = positive_number(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction between 0 and 1")
    return value


def run(args: argparse.Namespace) -> int:
    """Prepare the dataset and print its path; return 1 if a download, an upload or a write fails."""
    with announced(LOADING):
        from mambaout_jax.data import DataError
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

    kinds = [kind for kind in KINDS if getattr(args, kind) is not None]
    own = args.name in OWN
    of_folders = args.source, args.called, args.val, args.skip_bad
    if args.name == "imagenet" and (len(kinds) != 1 or args.zip or any(of_folders)):
        raise DataError("prepare imagenet requires one of --tars DIR, --folder DIR and --tfrecord DIR")
    if args.name in ("folder", "segmentation") and (kinds or args.zip or not args.source):
        raise DataError(f"prepare {args.name} requires the folder of the images: prepare {args.name} DIR [--name NAME]")
    if args.name == "ade20k" and ((args.zip is None) == (kinds != ["folder"]) or any(of_folders)):
        raise DataError("prepare ade20k requires one of --zip FILE and --folder DIR")
    of_coco = args.root, args.json, args.val_json
    if args.name == "coco" and (not args.root or args.json or args.val_json or kinds or args.zip or any(of_folders)):
        raise DataError("prepare coco requires the folder of COCO 2017: prepare coco --root DIR")
    if args.name == "coco-format" and (not args.source or not args.json or args.root or kinds or args.zip):
        raise DataError("prepare coco-format requires images and annotations: prepare coco-format DIR --json FILE")
    if args.val and args.val_json:
        raise DataError("--val and --val-json both make a validation split; leave out one of them")
    if args.name not in ("coco", "coco-format") and any(of_coco):
        raise DataError("--root, --json and --val-json are for coco and coco-format; see prepare --help")
    others = (args.zip, *of_folders, args.workers, args.overwrite)
    if not own and (kinds or any(others)):
        raise DataError(f"prepare {args.name} takes only --data-dir; for your own images, see prepare --help")
    workers = args.workers or count_cores()
    try:
        with exit_on_signals(signal.SIGTERM, signal.SIGHUP):
            if args.name == "imagenet":
                source = getattr(args, kinds[0])
                _report(prepare_imagenet(kinds[0], source, args.data_dir, workers, overwrite=args.overwrite))
            elif args.name == "ade20k":
                source = args.zip or args.folder
                zipped = args.zip is not None
                _report(prepare_ade20k(source, args.data_dir, workers, zipped=zipped, overwrite=args.overwrite))
            elif args.name == "coco":
                _report(prepare_coco(args.root, args.data_dir, workers, overwrite=args.overwrite))
            elif args.name == "coco-format":
                prepared = prepare_coco_format(
                    args.source,
                    args.json,
                    args.called,
                    args.data_dir,
                    workers,
                    validation=args.val_json or args.val or None,
                    skip_bad=args.skip_bad,
                    overwrite=args.overwrite,
                )
                _report(prepared)
            elif own:
                prepare = {"folder": prepare_folder, "segmentation": prepare_segmentation}[args.name]
                prepared = prepare(
                    args.source,
                    args.called,
                    args.data_dir,
                    workers,
                    validation=args.val,
                    skip_bad=args.skip_bad,
                    overwrite=args.overwrite,
                )
                _report(prepared)
            else:
                print(f"{args.name} is prepared in {printable(prepare_dataset(args.name, args.data_dir))}")
    except OSError as error:
        return print_error(describe_fault(error) or error, 1)
    return 0


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
