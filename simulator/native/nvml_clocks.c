/* NVML's clock locks: who may set them, what is refused, and the log by which a test sees each call.
 *
 * As on a real device a lock belongs to nobody: it outlives the process that set it, whoever calls last wins, and no
 * function tells which range is locked. */
#define _GNU_SOURCE
#include "nvml.h"

#include <linux/capability.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The driver asks the kernel for CAP_SYS_ADMIN, not for user 0: root in a container may lack it, another user have it. */
static int is_administrator(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0, 0, 0}};
    if (syscall(SYS_capget, &header, data) != 0) return geteuid() == 0;
    return (data[CAP_TO_INDEX(CAP_SYS_ADMIN)].effective & CAP_TO_MASK(CAP_SYS_ADMIN)) != 0;
}

static nvml_return refused(const psim_config *config, const gpu_state *device) {
    if (device->faults.flags & PSIM_FAULT_NO_PERMISSION) return NO_PERMISSION;
    if (config->administrators_only && !is_administrator()) return NO_PERMISSION;
    if (device->faults.flags & PSIM_FAULT_NOT_SUPPORTED) return NOT_SUPPORTED;
    if (device->faults.flags & PSIM_FAULT_UNKNOWN) return UNKNOWN;
    return SUCCESS;
}

static void log_call(gpu_state *device, uint64_t received_nanoseconds, clock_range range, nvml_return result) {
    device->log[device->logged % PSIM_CALL_LOG] = (psim_clock_call){
        .sequence = device->logged, .received_nanoseconds = received_nanoseconds, .locked = range.locked,
        .lowest_megahertz = range.lowest, .highest_megahertz = range.highest, .result = result};
    device->logged++;
}

static nvml_return change_clocks(nvml_device handle, clock_range range) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    int gpu;
    nvml_return result = nvml_enter(handle, &gpu);
    if (result != SUCCESS) return result;
    psim_node *node = nvml_node();
    gpu_state *device = &node->state->gpus[gpu];
    result = refused(&node->state->config, device);
    if (result != SUCCESS) {
        device->calls.refused++;
    } else {
        *(range.locked ? &device->calls.set_locked_clocks : &device->calls.reset_locked_clocks) += 1;
        model_request(node, gpu, range);
        if (model_running(node, gpu)) state_wake(device);
    }
    log_call(device, (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec, range, result);
    state_unlock(device);
    return result;
}

API nvml_return nvmlDeviceSetGpuLockedClocks(nvml_device handle, unsigned int lowest, unsigned int highest) {
    if (highest < lowest || highest > 100000 || highest == 0) return INVALID_ARGUMENT;
    return change_clocks(handle, (clock_range){1, (int32_t)lowest, (int32_t)highest});
}

API nvml_return nvmlDeviceResetGpuLockedClocks(nvml_device handle) {
    return change_clocks(handle, (clock_range){0, 0, 0});
}

/* Memory clocks are left alone by everybody: the simulated device does not offer them. */
static nvml_return unsupported(nvml_device handle) {
    int gpu;
    nvml_return result = nvml_enter(handle, &gpu);
    if (result != SUCCESS) return result;
    state_unlock(&nvml_node()->state->gpus[gpu]);
    return NOT_SUPPORTED;
}

API nvml_return nvmlDeviceSetMemoryLockedClocks(nvml_device handle, unsigned int lowest, unsigned int highest) {
    (void)lowest, (void)highest;
    return unsupported(handle);
}

API nvml_return nvmlDeviceResetMemoryLockedClocks(nvml_device handle) { return unsupported(handle); }
