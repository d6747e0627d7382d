"""What ``import gap_plugin`` adds to importing MMPretrain's models and timm.

Whole processes, started in turn.
"""

import argparse
import subprocess
import sys

import paired

HOST = 'import warnings; warnings.simplefilter("ignore"); ' \
    'import mmpretrain.models, timm'


def start(code: str) -> None:
    """Run a line of Python in a process of its own."""
    subprocess.run([sys.executable, '-c', code], check=True,
                   capture_output=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--out', help='JSON file for the raw figures')
    args = parser.parse_args()
    row = paired.paired_ratio(lambda: start(f'{HOST}, gap_plugin'),
                              lambda: start(HOST), args.rounds)
    print(f'import time ratio: {row["ratio"]:.3f} '
          f'({row["ours_s"]:.2f} s, {row["theirs_s"]:.2f} s)')
    if args.out:
        paired.write(args.out, [row])


if __name__ == '__main__':
    main()
