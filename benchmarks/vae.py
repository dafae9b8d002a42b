"""Peak memory of the VAE: a batch of latents decoded together against one by one, as images larger than 512 px are.

    python benchmarks/vae.py                                              batch 2, 512 px, on the CPU
    python benchmarks/vae.py --device cuda --dtype float16 --size 1024 --batch-size 8

Stable Diffusion XL's VAE with random weights; each way in a process of its own. The images are compared too.
"""

import argparse
import json
import subprocess
import sys

import torch
from random_models import vae_of
from timing import peak_memory, print_ratios, print_table

WAYS = ("together", "one by one")


def measured(args: argparse.Namespace) -> dict[str, object]:
    """Peak GB of this process (on a GPU what it allocates), and means of the images' columns, of one way."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    vae = vae_of("sdxl").to(device, getattr(torch, args.dtype)).eval()
    if args.only == WAYS[1]:
        vae.enable_slicing()
    latents = torch.randn(args.batch_size, 4, args.size // 8, args.size // 8, device=device, dtype=vae.dtype)
    with torch.inference_mode(), peak_memory(device) as peak:
        images = vae.decode(latents).sample
    return {"peak": peak.bytes / 1e9, "rows": images.float().mean(dim=(1, 2)).cpu().tolist()}


def main() -> None:
    """Measure both ways, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--size", type=int, default=512, help="height and width, pixels")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measured(args)))
        return
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", way]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    together, single = (found[way] for way in WAYS)
    apart = (torch.tensor(together["rows"]) - torch.tensor(single["rows"])).abs().max().item()
    print_table(["decoded", "peak GB"], [[way, f"{found[way]['peak']:.2f}"] for way in WAYS])
    print_ratios({"memory": single["peak"] / together["peak"], "columns_apart": apart})


if __name__ == "__main__":
    main()
