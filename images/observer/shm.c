// SPDX-License-Identifier: GPL-2.0-or-later
#include "install.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "state.h"

#define MAX_RING_RECORDS (1u << 24)
#define MAX_TABLE_BLOCKS (1u << 16)

static bool fits(uint64_t offset, uint64_t count, uint64_t size, uint64_t total)
{
	return offset >= OBSERVER_HEADER_SIZE && offset % 64 == 0 && offset <= total &&
	       count * size <= total - offset;
}

/* Return what is wrong with the file's shape, or NULL. */
static const char *check_shape(const struct observer_shape *shape, uint64_t file_size)
{
	uint64_t total = shape->total_size;

	if (shape->magic != OBSERVER_MAGIC)
		return "it is not the observer's";
	if (shape->version != OBSERVER_SHM_VERSION)
		return "it is of another version";
	if (shape->record_size != sizeof(struct observer_record) ||
	    shape->vcpu_size != sizeof(struct observer_vcpu) ||
	    shape->window_size != sizeof(struct observer_window) ||
	    shape->sibling_size != sizeof(struct observer_sibling) ||
	    shape->block_size != sizeof(struct observer_block) ||
	    shape->cover_size != sizeof(struct observer_cover) ||
	    shape->update_size != sizeof(struct observer_update))
		return "its parts are of other sizes";
	if (!shape->vcpus || shape->vcpus > OBSERVER_MAX_VCPUS || !shape->threads ||
	    shape->vcpus % shape->threads || shape->vcpus / shape->threads > OBSERVER_MAX_CORES)
		return "its vCPUs and threads do not make up to 16 whole cores";
	if (!shape->ring_records || shape->ring_records > MAX_RING_RECORDS)
		return "its ring has no or too many records";
	if (!shape->table_blocks || shape->table_blocks > MAX_TABLE_BLOCKS ||
	    shape->table_blocks & (shape->table_blocks - 1) || !shape->cover_blocks ||
	    shape->cover_blocks > MAX_TABLE_BLOCKS ||
	    shape->cover_blocks & (shape->cover_blocks - 1))
		return "its tables' size is not a power of two up to 65536";
	if (total != file_size)
		return "it is not as long as it says";
	if (!fits(shape->vcpu_offset, shape->vcpus, shape->vcpu_size, total) ||
	    !fits(shape->window_offset, shape->vcpus / shape->threads, shape->window_size, total) ||
	    !fits(shape->sibling_offset, shape->vcpus, shape->sibling_size, total) ||
	    !fits(shape->table_offset, (uint64_t)shape->vcpus * shape->table_blocks,
		  shape->block_size, total) ||
	    !fits(shape->cover_offset, (uint64_t)shape->vcpus * shape->cover_blocks,
		  shape->cover_size, total) ||
	    !fits(shape->update_offset, OBSERVER_UPDATES, shape->update_size, total) ||
	    !fits(shape->ring_offset, shape->ring_records, shape->record_size, total))
		return "a part reaches past its end";
	return NULL;
}

/* Return the mapped file, or NULL with the reason in errno, 0 for one that is too short. */
static void *map_file(const char *path, uint64_t *size)
{
	struct stat status;
	void *base = NULL;
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return NULL;
	errno = 0;
	if (!fstat(fd, &status) && S_ISREG(status.st_mode) &&
	    status.st_size >= OBSERVER_HEADER_SIZE) {
		*size = status.st_size;
		base = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (base == MAP_FAILED)
			base = NULL;
	}
	close(fd);
	return base;
}

static void adopt(char *base)
{
	const struct observer_shape *shape = (const void *)base;

	observer.header = (void *)base;
	observer.vcpus = (void *)(base + shape->vcpu_offset);
	observer.windows = (void *)(base + shape->window_offset);
	observer.siblings = (void *)(base + shape->sibling_offset);
	observer.tables = (void *)(base + shape->table_offset);
	observer.covers = (void *)(base + shape->cover_offset);
	observer.updates = (void *)(base + shape->update_offset);
	observer.ring = (void *)(base + shape->ring_offset);
	observer.vcpu_count = shape->vcpus;
	observer.threads = shape->threads;
	observer.core_count = shape->vcpus / shape->threads;
	observer.ring_records = shape->ring_records;
	observer.table_blocks = shape->table_blocks;
	observer.cover_blocks = shape->cover_blocks;
	for (uint32_t vcpu = 0; vcpu < observer.vcpu_count; vcpu++)
		observer.core_by_vcpu[vcpu] = &observer.cores[vcpu / observer.threads];
}

bool shm_map(const char *path, const qemu_info_t *info, unsigned int threads)
{
	const struct observer_shape *shape;
	const char *problem;
	uint64_t size;
	void *base = map_file(path, &size);

	if (!base) {
		complain("shm '%s' cannot be mapped: %s", path,
			 errno ? strerror(errno) : "not a regular file of a page or more");
		return false;
	}
	shape = base;
	problem = check_shape(shape, size);
	if (problem) {
		complain("shm '%s' is unfit: %s", path, problem);
		goto unmap;
	}
	if (shape->threads != threads || shape->vcpus != (uint32_t)info->system.max_vcpus) {
		complain("shm '%s' is for %u vCPUs with %u threads per core, the guest has %d with "
			 "%u",
			 path, shape->vcpus, shape->threads, info->system.max_vcpus, threads);
		goto unmap;
	}
	adopt(base);
	return true;
unmap:
	munmap(base, size);
	return false;
}
