/* NVML's library and handles: init, shutdown, what the system says of itself, and who is which device. */
#define _GNU_SOURCE
#include "nvml.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static pthread_mutex_t library_mutex = PTHREAD_MUTEX_INITIALIZER;
static int references;
static psim_node *opened;

psim_node *nvml_node(void) { return __atomic_load_n(&opened, __ATOMIC_ACQUIRE); }

API nvml_return nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    nvml_return result = SUCCESS;
    pthread_mutex_lock(&library_mutex);
    if (references == 0) {
        psim_node *node;
        const char *path = getenv("PERSEUS_SIMULATOR_STATE");
        if (path == NULL || psim_open(path, &node) != PSIM_OK) {
            result = DRIVER_NOT_LOADED;
        } else if (psim_read_init_fault(node)) {
            psim_close(node);
            result = UNKNOWN;
        } else {
            __atomic_store_n(&opened, node, __ATOMIC_RELEASE);
        }
    }
    if (result == SUCCESS) references++;
    pthread_mutex_unlock(&library_mutex);
    return result;
}

API nvml_return nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
API nvml_return nvmlInit(void) { return nvmlInitWithFlags(0); }

API nvml_return nvmlShutdown(void) {
    nvml_return result = SUCCESS;
    pthread_mutex_lock(&library_mutex);
    if (references == 0) {
        result = UNINITIALIZED;
    } else if (--references == 0) {
        psim_node *node = opened;
        __atomic_store_n(&opened, NULL, __ATOMIC_RELEASE);
        psim_close(node);
    }
    pthread_mutex_unlock(&library_mutex);
    return result;
}

API const char *nvmlErrorString(nvml_return result) {
    switch (result) {
        case SUCCESS: return "Success";
        case UNINITIALIZED: return "Uninitialized";
        case INVALID_ARGUMENT: return "Invalid Argument";
        case NOT_SUPPORTED: return "Not Supported";
        case NO_PERMISSION: return "Insufficient Permissions";
        case NOT_FOUND: return "Not Found";
        case INSUFFICIENT_SIZE: return "Insufficient Size";
        case DRIVER_NOT_LOADED: return "Driver Not Loaded";
        case GPU_IS_LOST: return "GPU is lost";
        default: return "Unknown Error";
    }
}

nvml_return nvml_enter(nvml_device handle, int *gpu) {
    psim_node *node = nvml_node();
    if (node == NULL) return UNINITIALIZED;
    intptr_t index = (intptr_t)handle - 1;
    if (index < 0 || index >= node->state->config.gpus) return INVALID_ARGUMENT;
    gpu_state *device = &node->state->gpus[index];
    double latency = device->faults.call_latency_seconds;
    if (latency > 0) {
        struct timespec pause = {(time_t)latency, (long)((latency - floor(latency)) * 1e9)};
        nanosleep(&pause, NULL);
    }
    if (state_lock(device) != PSIM_OK) return UNKNOWN;
    if (device->faults.flags & PSIM_FAULT_LOST) {
        state_unlock(device);
        return GPU_IS_LOST;
    }
    model_advance(node, (int)index, state_now());
    *gpu = (int)index;
    return SUCCESS;
}

nvml_return nvml_text(char *target, unsigned int length, const char *source) {
    if (target == NULL) return INVALID_ARGUMENT;
    if (strlen(source) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(target, source);
    return SUCCESS;
}

API nvml_return nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    return nvml_node() ? nvml_text(version, length, "580.00.00-simulated") : UNINITIALIZED;
}

API nvml_return nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    return nvml_node() ? nvml_text(version, length, "13.580.00") : UNINITIALIZED;
}

API nvml_return nvmlSystemGetCudaDriverVersion_v2(int *version) {
    if (nvml_node() == NULL) return UNINITIALIZED;
    if (version == NULL) return INVALID_ARGUMENT;
    *version = 13000;
    return SUCCESS;
}

API nvml_return nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

API nvml_return nvmlDeviceGetCount_v2(unsigned int *count) {
    psim_node *node = nvml_node();
    if (node == NULL) return UNINITIALIZED;
    if (count == NULL) return INVALID_ARGUMENT;
    *count = (unsigned int)node->state->config.gpus;
    return SUCCESS;
}

API nvml_return nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvml_device *handle) {
    psim_node *node = nvml_node();
    if (node == NULL) return UNINITIALIZED;
    if (handle == NULL || index >= (unsigned int)node->state->config.gpus) return INVALID_ARGUMENT;
    if (node->state->gpus[index].faults.flags & PSIM_FAULT_LOST) return GPU_IS_LOST;
    *handle = (nvml_device)(intptr_t)(index + 1);
    return SUCCESS;
}

API nvml_return nvmlDeviceGetHandleByUUID(const char *uuid, nvml_device *handle) {
    psim_node *node = nvml_node();
    if (node == NULL) return UNINITIALIZED;
    if (uuid == NULL || handle == NULL) return INVALID_ARGUMENT;
    for (int i = 0; i < node->state->config.gpus; i++)
        if (strcmp(node->state->config.uuids[i], uuid) == 0) return nvmlDeviceGetHandleByIndex_v2((unsigned)i, handle);
    return NOT_FOUND;
}
