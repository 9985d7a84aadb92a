// peer: no, CRIU 4.2 is built without them in Debian
/* BPF maps: an array, a hash, a frozen array, with contents, name and flags; one held twice. */
#include <linux/bpf.h>

#include "workload.h"

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static int create(int type, int key, int value, int entries, int flags, const char *name)
{
	union bpf_attr attr = { .map_type = type, .key_size = key, .value_size = value, .max_entries = entries, .map_flags = flags };

	snprintf(attr.map_name, sizeof(attr.map_name), "%s", name);
	return MUST(bpf(BPF_MAP_CREATE, &attr));
}

static int update(int map, uint32_t key, uint64_t value)
{
	union bpf_attr attr = { .map_fd = map, .key = (uint64_t)&key, .value = (uint64_t)&value };

	return bpf(BPF_MAP_UPDATE_ELEM, &attr);
}

static uint64_t lookup(int map, uint32_t key)
{
	uint64_t value = 0;
	union bpf_attr attr = { .map_fd = map, .key = (uint64_t)&key, .value = (uint64_t)&value };

	return bpf(BPF_MAP_LOOKUP_ELEM, &attr) == 0 ? value : 0;
}

static struct bpf_map_info describe(int map)
{
	struct bpf_map_info info = { 0 };
	union bpf_attr attr = { .info.bpf_fd = map, .info.info_len = sizeof(info), .info.info = (uint64_t)&info };

	MUST(bpf(BPF_OBJ_GET_INFO_BY_FD, &attr));
	return info;
}

int main(int argc, char **argv)
{
	struct bpf_map_info before[3], now;
	int maps[3], twin;

	wl_init(argc, argv);
	maps[0] = create(BPF_MAP_TYPE_ARRAY, 4, 8, 50, 0, "an_array");
	maps[1] = create(BPF_MAP_TYPE_HASH, 4, 8, 100, BPF_F_NO_PREALLOC, "a_hash");
	maps[2] = create(BPF_MAP_TYPE_ARRAY, 4, 8, 5, 0, "frozen");
	twin = MUST(dup(maps[0]));
	for (int i = 0; i < 50; i++) {
		MUST(update(maps[0], i, 1000 + i));
		MUST(update(maps[1], i * 7777, 2000 + i));
	}
	MUST(update(maps[2], 2, 42));
	MUST(bpf(BPF_MAP_FREEZE, &(union bpf_attr){ .map_fd = maps[2] }));
	for (int i = 0; i < 3; i++)
		before[i] = describe(maps[i]);

	wl_ready();
	if (wl_lose)
		MUST(update(maps[1], 7777, 1));
	for (int i = 0; i < 3; i++) {
		now = describe(maps[i]);
		CHECK(now.type == before[i].type && now.key_size == 4 && now.value_size == 8 && now.max_entries == before[i].max_entries &&
			      now.map_flags == before[i].map_flags && strcmp(now.name, before[i].name) == 0,
		      "map %d: type %u entries %u flags %#x name %s", i, now.type, now.max_entries, now.map_flags, now.name);
	}
	for (int i = 0; i < 50; i++) {
		CHECK(lookup(maps[0], i) == 1000u + i, "entry %d of the array is %lu", i, lookup(maps[0], i));
		CHECK(lookup(maps[1], i * 7777) == 2000u + i, "entry %d of the hash is %lu", i, lookup(maps[1], i * 7777));
	}
	CHECK(lookup(maps[2], 2) == 42 && update(maps[2], 2, 1) < 0 && errno == EPERM, "the frozen map: entry %lu, %s", lookup(maps[2], 2),
	      strerror(errno));
	MUST(update(twin, 3, 3));
	CHECK(lookup(maps[0], 3) == 3, "the duplicate is another map");
	wl_ok();
}
