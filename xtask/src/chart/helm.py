"""Helm's own engine, by request on standard input and answer on standard output, both JSON.

{"action": "lint" | "render" | "install" | "upgrade" | "uninstall", "chart": folder, "release": name,
 "namespace": name, "values": {…}, "kubeconfig": file, "timeout": seconds}
"""
import json
import sys

import helm_python as helm


def main():
    ask = json.load(sys.stdin)
    action, chart, values = ask["action"], ask.get("chart"), ask.get("values") or {}
    if action == "lint":
        return helm.lint(chart, values, strict=True)
    if action == "render":
        with helm.Chart.load(chart) as loaded:
            loaded.validate_schema(values)
            return loaded.render(values, name=ask["release"], namespace=ask["namespace"])
    options = {"timeout": ask.get("timeout", 120), "wait": "watcher"}
    with helm.Config(kubeconfig_path=ask["kubeconfig"], namespace=ask["namespace"]) as cluster:
        if action == "install":
            return cluster.install(chart, ask["release"], values, create_namespace=True, **options)
        if action == "upgrade":
            return cluster.upgrade(chart, ask["release"], values, **options)
        if action == "uninstall":
            return cluster.uninstall(ask["release"], **options)
    raise SystemExit(f"unknown action {action}")


try:
    json.dump(main(), sys.stdout)
except helm.HelmError as error:
    sys.exit(f"{type(error).__name__}: {error}")
