"""Writes what is made from the chart: the plain manifests, which are also a kustomize base.

python charts/make.py            writes charts/manifests/
python charts/make.py --check    exits with 1 and names the files that differ (tests/charts runs this)
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

CHARTS = Path(__file__).parent
MANIFESTS = CHARTS / "manifests"
HEADER = "# Made by charts/make.py from charts/penstock: do not edit.\n"
NAMESPACE = "penstock-system"
KUSTOMIZATION = f"""\
{HEADER}apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - namespace.yaml
  - crds.yaml
  - operator.yaml
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file differs")
    check = parser.parse_args().check
    helm = shutil.which("helm")
    if helm is None:
        sys.exit("charts/make.py needs helm on the PATH")
    files = manifests(helm)
    differing = [name for name, text in files.items() if not same(MANIFESTS / name, text)]
    for name in differing:
        if not check:
            MANIFESTS.mkdir(exist_ok=True)
            (MANIFESTS / name).write_text(files[name])
        print(f"{'differs' if check else 'written'}: charts/manifests/{name}")
    if check and differing:
        print("run: python charts/make.py")
    return 1 if check and differing else 0


def manifests(helm: str) -> dict[str, str]:
    """The files by name: `kubectl apply --server-side -k charts/manifests` applies them all."""
    return {
        "namespace.yaml": f"{HEADER}apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n",
        "crds.yaml": HEADER + (CHARTS / "penstock" / "files" / "crds.yaml").read_text().partition("\n")[2],
        "operator.yaml": HEADER + template(helm),
        "kustomization.yaml": KUSTOMIZATION,
    }


def template(helm: str) -> str:
    """The chart's objects without the CRDs and without what says that Helm manages them."""
    command = [helm, "template", "penstock", str(CHARTS / "penstock"), "--namespace", NAMESPACE]
    options = ["--set", "crds.install=false", "--set", "podMonitor.enabled=false"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(result.stderr)
    lines = result.stdout.splitlines(keepends=True)
    return "".join(line for line in lines if "app.kubernetes.io/managed-by: Helm" not in line)


def same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
