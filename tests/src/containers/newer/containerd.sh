# Starts containerd and gives it an image of one layer, from /busybox.tar.
set -e
containerd >/tmp/containerd.log 2>&1 &
image=/tmp/image
mkdir -p "$image/blobs/sha256"
layer=$(sha256sum /busybox.tar | cut -d' ' -f1)
cp /busybox.tar "$image/blobs/sha256/$layer"
put() {
    digest=$(printf %s "$1" | sha256sum | cut -d' ' -f1)
    size=${#1}
    printf %s "$1" >"$image/blobs/sha256/$digest"
}
oci=application/vnd.oci.image
put "{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{\"Cmd\":[\"sh\"],\"Env\":[\"PATH=/bin\"]},
  \"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:$layer\"]}}"
put "{\"schemaVersion\":2,\"mediaType\":\"$oci.manifest.v1+json\",
  \"config\":{\"mediaType\":\"$oci.config.v1+json\",\"digest\":\"sha256:$digest\",\"size\":$size},
  \"layers\":[{\"mediaType\":\"$oci.layer.v1.tar\",\"digest\":\"sha256:$layer\",\"size\":$(stat -c %s /busybox.tar)}]}"
echo "{\"schemaVersion\":2,\"manifests\":[{\"mediaType\":\"$oci.manifest.v1+json\",\"digest\":\"sha256:$digest\",
  \"size\":$size,\"annotations\":{\"io.containerd.image.name\":\"docker.io/library/busybox:latest\"}}]}" >"$image/index.json"
echo '{"imageLayoutVersion":"1.0.0"}' >"$image/oci-layout"
tar -C "$image" -cf /tmp/image.tar .
for _ in {1..100}; do
    ctr version >/dev/null 2>&1 && break
    sleep 0.1
done
ctr images import /tmp/image.tar
