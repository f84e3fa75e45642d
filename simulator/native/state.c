/* Mapping, mutexes, futex waits and the file locks by which a client's death is seen.
 *
 * Processes of different containers share nothing but the file: not process ids, not names. A lock on one byte of the
 * file for each client is freed by the kernel with the process, whoever kills it. */
#define _GNU_SOURCE
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Bytes far beyond the file's end, which no read or write ever touches. */
#define LOCK_BASE (1ll << 40)

double state_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

int state_lock(gpu_state *gpu) {
    int result = pthread_mutex_lock(&gpu->mutex);
    if (result == EOWNERDEAD) {
        pthread_mutex_consistent(&gpu->mutex);
        result = 0;
    }
    if (result != 0) {
        errno = result;
        return PSIM_ERROR_SYSTEM;
    }
    return PSIM_OK;
}

void state_unlock(gpu_state *gpu) { pthread_mutex_unlock(&gpu->mutex); }

void state_wake(gpu_state *gpu) {
    __atomic_add_fetch(&gpu->epoch, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &gpu->epoch, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

void state_wait(gpu_state *gpu, uint32_t epoch, double until_seconds) {
    struct timespec until;
    until.tv_sec = (time_t)floor(until_seconds);
    until.tv_nsec = (long)((until_seconds - floor(until_seconds)) * 1e9);
    syscall(SYS_futex, &gpu->epoch, FUTEX_WAIT_BITSET, epoch, &until, NULL, FUTEX_BITSET_MATCH_ANY);
}

static struct flock slot_lock(int gpu, int slot) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
    lock.l_start = LOCK_BASE + (off_t)gpu * PSIM_MAX_CLIENTS + slot;
    return lock;
}

int slot_claim(psim_node *node, int gpu, int slot, int *descriptor) {
    int opened = open(node->path, O_RDWR | O_CLOEXEC);
    if (opened < 0) return PSIM_ERROR_SYSTEM;
    struct flock lock = slot_lock(gpu, slot);
    if (fcntl(opened, F_OFD_SETLK, &lock) != 0) {
        int problem = errno;
        close(opened);
        errno = problem;
        return problem == EAGAIN || problem == EACCES ? PSIM_ERROR_FULL : PSIM_ERROR_SYSTEM;
    }
    *descriptor = opened;
    return PSIM_OK;
}

int slot_is_alive(psim_node *node, int gpu, int slot) {
    struct flock lock = slot_lock(gpu, slot);
    if (fcntl(node->descriptor, F_OFD_GETLK, &lock) != 0) return 1;
    return lock.l_type != F_UNLCK;
}

static int valid_config(const psim_config *config, const psim_row *rows) {
    if (config->gpus < 1 || config->gpus > PSIM_MAX_GPUS || config->rows < 0 || config->rows > 65536) return 0;
    if (config->lowest_clock_megahertz < 1 || config->clock_step_megahertz < 1 ||
        config->highest_clock_megahertz < config->lowest_clock_megahertz)
        return 0;
    const double numbers[] = {config->blocking_watts, config->idle_watts, config->power_limit_watts,
                              config->clock_change_delay_seconds, config->time_noise, config->power_noise,
                              config->warm_up_seconds, config->cold_share};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!isfinite(numbers[i]) || numbers[i] < 0) return 0;
    if (config->time_noise > 0.3 || config->power_noise > 0.3 || config->cold_share > 1) return 0;
    if (!(config->time_scale > 0) || !isfinite(config->time_scale)) return 0;
    if (!(config->counter_refresh_seconds > 0) || !isfinite(config->counter_refresh_seconds)) return 0;
    for (int i = 0; i < config->rows; i++)
        if (!(rows[i].seconds > 0) || !isfinite(rows[i].seconds) || !(rows[i].joules >= 0) || !isfinite(rows[i].joules))
            return 0;
    return 1;
}

int psim_create(const char *path, const psim_config *config, const psim_row *rows) {
    if (!valid_config(config, rows)) return PSIM_ERROR_ARGUMENT;
    size_t bytes = sizeof(state_file) + (size_t)config->rows * sizeof(psim_row);
    char draft[4096];
    if (snprintf(draft, sizeof draft, "%s.%d.draft", path, (int)getpid()) >= (int)sizeof draft)
        return PSIM_ERROR_ARGUMENT;
    int descriptor = open(draft, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor < 0) return PSIM_ERROR_SYSTEM;
    /* Training processes run as any user, and the device is theirs to use. */
    if (fchmod(descriptor, 0666) != 0 || ftruncate(descriptor, (off_t)bytes) != 0) goto failed;
    state_file *state = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (state == MAP_FAILED) goto failed;
    state->version = STATE_VERSION;
    state->bytes = (uint32_t)bytes;
    state->config = *config;
    if (config->rows) memcpy(state->rows, rows, (size_t)config->rows * sizeof(psim_row));
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    double now = state_now();
    for (int i = 0; i < PSIM_MAX_GPUS; i++) {
        gpu_state *gpu = &state->gpus[i];
        pthread_mutex_init(&gpu->mutex, &attributes);
        gpu->faults.slowdown = 1.0;
        gpu->integrated_seconds = gpu->counted_seconds = gpu->probed_seconds = gpu->warm_since_seconds = now;
        gpu->noise = 0x9e3779b97f4a7c15ull * (uint64_t)(i + 1);
    }
    pthread_mutexattr_destroy(&attributes);
    state->magic = STATE_MAGIC;
    munmap(state, bytes);
    if (rename(draft, path) != 0) goto failed;
    close(descriptor);
    return PSIM_OK;
failed:;
    int problem = errno;
    close(descriptor);
    unlink(draft);
    errno = problem;
    return PSIM_ERROR_SYSTEM;
}

int psim_open(const char *path, psim_node **node) {
    if (strlen(path) >= sizeof((*node)->path)) return PSIM_ERROR_ARGUMENT;
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return PSIM_ERROR_SYSTEM;
    struct stat status;
    if (fstat(descriptor, &status) != 0 || (size_t)status.st_size < sizeof(state_file)) {
        close(descriptor);
        return PSIM_ERROR_FORMAT;
    }
    state_file *state = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (state == MAP_FAILED) {
        close(descriptor);
        return PSIM_ERROR_SYSTEM;
    }
    if (state->magic != STATE_MAGIC || state->version != STATE_VERSION || state->bytes != (uint64_t)status.st_size) {
        munmap(state, (size_t)status.st_size);
        close(descriptor);
        return PSIM_ERROR_FORMAT;
    }
    psim_node *opened = calloc(1, sizeof *opened);
    if (opened == NULL) {
        munmap(state, (size_t)status.st_size);
        close(descriptor);
        return PSIM_ERROR_SYSTEM;
    }
    opened->state = state;
    opened->descriptor = descriptor;
    strcpy(opened->path, path);
    *node = opened;
    return PSIM_OK;
}

void psim_close(psim_node *node) {
    if (node == NULL) return;
    munmap(node->state, node->state->bytes);
    close(node->descriptor);
    free(node);
}
