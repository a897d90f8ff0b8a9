# The node itself, run in a mount and a process namespace of its own: ending this shell ends everything that it started.
# Arguments: folder of programs, folder of the node, name of the node, address of the node; the rest are images.
set -eu
programs=$1 folder=$2 name=$3 address=$4
shift 4
export PATH="$programs:$PATH"

mount --make-rshared /
for place in /var/lib/kubelet /var/log/pods /var/log/containers /run/containerd /run/netns /run/enforcer /var/lib/enforcer; do
    mkdir -p "$place"
    mount -t tmpfs tmpfs "$place"
done
mount --make-rshared /var/lib/kubelet
# As systemd does on a real node; a bpffs of the node's own, which goes with it.
mount -t bpf bpf /sys/fs/bpf

# The kubelet wants these settings and would set them for the whole machine: it is shown files instead.
fake() {
    file=$folder/fake-$(basename "$1")
    echo "$2" > "$file"
    mount --bind "$file" "$1"
}
fake /proc/sys/vm/overcommit_memory 1
fake /proc/sys/vm/panic_on_oom 0
fake /proc/sys/kernel/panic 10
fake /proc/sys/kernel/panic_on_oops 1
fake /proc/sys/kernel/keys/root_maxkeys 1000000
fake /proc/sys/kernel/keys/root_maxbytes 25000000

containerd --config "$folder/containerd.toml" > "$folder/containerd.log" 2>&1 &
tries=0
until ctr version > /dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || { echo "containerd does not answer, see $folder/containerd.log"; exit 1; }
    sleep 0.1
done
for image in "$@"; do
    ctr --namespace k8s.io images import "$image"
done
kubelet --config "$folder/kubelet.yaml" --kubeconfig "$folder/node.kubeconfig" \
    --hostname-override "$name" --node-ip "$address" \
    --container-runtime remote --container-runtime-endpoint unix:///run/containerd/containerd.sock \
    --root-dir /var/lib/kubelet --cert-dir "$folder/kubelet-pki" > "$folder/kubelet.log" 2>&1 &
echo "started"
# Either of them ending ends the node.
wait -n
