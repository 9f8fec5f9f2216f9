// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The guest's agent: reads and writes files for the lab, many in one round trip.
 *
 * Under an emulator a shell takes some 20 ms for each program that it starts.
 * The agent starts once for each guest, and starts nothing.
 *
 * A request is the number of its steps, then the steps. The agent takes the
 * steps in order, also after a step that failed. The answer is the number of
 * its bytes, then for each step an errno, the number of bytes read, and the
 * bytes. All numbers have 32 bits in the machine's own order. The other side is
 * lab/guest/agent.py. The agent ends when its input ends, and with status 1 at
 * a request that breaks these rules.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <unistd.h>

/* Of one step, in each direction; lab/guest/agent.py has the same. */
#define MAX_STEP_BYTES (8u << 20)
#define MAX_STEPS      256u
#define CHUNK_BYTES    4096u
#define FILE_MODE      0644

/* Commands of syslog(2). */
#define LOG_READ_ALL   3
#define LOG_READ_CLEAR 4
#define LOG_SIZE       10

enum step_kind {
	STEP_READ,     /* a whole file */
	STEP_WRITE,    /* to a file that is there */
	STEP_PUT,      /* a file, made where there is none */
	STEP_REMOVE,   /* a file; one that is not there is no error */
	STEP_LOG,      /* the kernel's log */
	STEP_TAKE_LOG, /* the kernel's log, which is empty afterwards */
};

struct step {
	uint32_t kind;
	uint32_t path_bytes;
	uint32_t data_bytes;
};

struct buffer {
	char *bytes;
	size_t length;
	size_t room;
};

/* Returns where `length` more bytes can be put; they count once `length` grows. */
static char *reserve(struct buffer *buffer, size_t length)
{
	size_t room = buffer->room ? buffer->room : CHUNK_BYTES;

	while (room - buffer->length < length)
		room *= 2;
	if (room != buffer->room) {
		buffer->bytes = realloc(buffer->bytes, room);
		if (!buffer->bytes)
			exit(EXIT_FAILURE);
		buffer->room = room;
	}
	return buffer->bytes + buffer->length;
}

static void append(struct buffer *buffer, const void *bytes, size_t length)
{
	memcpy(reserve(buffer, length), bytes, length);
	buffer->length += length;
}

/* Fills `bytes` from the input; the input's end ends the agent. */
static void receive(void *bytes, size_t length)
{
	if (length && fread(bytes, length, 1, stdin) != 1)
		exit(feof(stdin) ? EXIT_SUCCESS : EXIT_FAILURE);
}

static int write_all(int file, const char *bytes, size_t length)
{
	while (length) {
		ssize_t written = write(file, bytes, length);

		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0)
			return errno;
		bytes += written;
		length -= (size_t)written;
	}
	return 0;
}

static int read_file(const char *path, struct buffer *answer)
{
	size_t left = MAX_STEP_BYTES;
	int file = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = 1;

	if (file < 0)
		return errno;
	while (left && got) {
		size_t most = left < CHUNK_BYTES ? left : CHUNK_BYTES;

		got = read(file, reserve(answer, most), most);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			break;
		answer->length += (size_t)got;
		left -= (size_t)got;
	}
	int error = got < 0 ? errno : 0;

	close(file);
	return error;
}

/* A file of sysfs takes what one write() brings, so short data are written at once. */
static int write_file(const char *path, int flags, const char *data, size_t length)
{
	int file = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC | flags, FILE_MODE);

	if (file < 0)
		return errno;
	int error = write_all(file, data, length);

	if (close(file) && !error)
		error = errno;
	return error;
}

static int remove_file(const char *path)
{
	return unlink(path) && errno != ENOENT ? errno : 0;
}

static int read_log(int command, struct buffer *answer)
{
	int size = klogctl(LOG_SIZE, NULL, 0);

	if (size < 0)
		return errno;
	if ((unsigned int)size > MAX_STEP_BYTES)
		size = MAX_STEP_BYTES;
	int got = klogctl(command, reserve(answer, (size_t)size), size);

	if (got < 0)
		return errno;
	answer->length += (size_t)got;
	return 0;
}

static int take_step(const struct step *step, const char *path, const char *data,
		     struct buffer *answer)
{
	switch (step->kind) {
	case STEP_READ:
		return read_file(path, answer);
	case STEP_WRITE:
		return write_file(path, 0, data, step->data_bytes);
	case STEP_PUT:
		return write_file(path, O_CREAT, data, step->data_bytes);
	case STEP_REMOVE:
		return remove_file(path);
	case STEP_LOG:
		return read_log(LOG_READ_ALL, answer);
	case STEP_TAKE_LOG:
		return read_log(LOG_READ_CLEAR, answer);
	}
	exit(EXIT_FAILURE);
}

static void serve_step(struct buffer *data, struct buffer *answer)
{
	char path[PATH_MAX];
	struct step step;

	receive(&step, sizeof(step));
	if (step.path_bytes >= sizeof(path) || step.data_bytes > MAX_STEP_BYTES)
		exit(EXIT_FAILURE);
	receive(path, step.path_bytes);
	path[step.path_bytes] = '\0';
	data->length = 0;
	receive(reserve(data, step.data_bytes), step.data_bytes);

	/* The place of the head may move while the step is taken. */
	size_t head_at = answer->length;
	uint32_t head[2] = {0, 0};

	append(answer, head, sizeof(head));
	head[0] = (uint32_t)take_step(&step, path, data->bytes, answer);
	head[1] = (uint32_t)(answer->length - head_at - sizeof(head));
	memcpy(answer->bytes + head_at, head, sizeof(head));
}

int main(void)
{
	struct buffer data = {0};
	struct buffer answer = {0};

	for (;;) {
		uint32_t steps, total = 0;

		receive(&steps, sizeof(steps));
		if (steps > MAX_STEPS)
			return EXIT_FAILURE;
		answer.length = 0;
		append(&answer, &total, sizeof(total));
		while (steps--)
			serve_step(&data, &answer);
		total = (uint32_t)(answer.length - sizeof(total));
		memcpy(answer.bytes, &total, sizeof(total));
		if (write_all(STDOUT_FILENO, answer.bytes, answer.length))
			return EXIT_FAILURE;
	}
}
