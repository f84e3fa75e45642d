/* What NVML's source files share: its constants, and the one door through which every call on a device goes.
 *
 * Signatures, error codes and constants follow NVIDIA's published API reference. A function that is absent answers
 * FUNCTION_NOT_FOUND in the Python binding, as an old driver's would. */
#ifndef NVML_H
#define NVML_H

#include "state.h"

#define API __attribute__((visibility("default")))

typedef int nvml_return;
typedef struct device *nvml_device; /* the GPU's index + 1 */

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, UNKNOWN = 999
};
enum { CLOCK_GRAPHICS = 0, CLOCK_SM = 1, CLOCK_MEM = 2, CLOCK_VIDEO = 3 };
enum { MEMORY_CLOCK_MEGAHERTZ = 1593 };

/* The node of this process; NULL before nvmlInit and after the last nvmlShutdown. */
psim_node *nvml_node(void);

/* Who calls without init, with a bad handle or on a lost GPU hears of it; the device is brought up to now. After SUCCESS
 * the caller holds the GPU's mutex. */
nvml_return nvml_enter(nvml_device handle, int *gpu);

/* A query: NULL where an answer belongs is an invalid argument, as it is for NVML. */
#define READ(handle, answer, ...)                     \
    do {                                              \
        if ((answer) == NULL) return INVALID_ARGUMENT; \
        int gpu;                                      \
        nvml_return entered = nvml_enter(handle, &gpu); \
        if (entered != SUCCESS) return entered;       \
        psim_node *node = nvml_node();                \
        gpu_state *device = &node->state->gpus[gpu];  \
        const psim_config *config = &node->state->config; \
        nvml_return result = SUCCESS;                 \
        (void)device, (void)config;                   \
        device->calls.reads++;                        \
        __VA_ARGS__;                                  \
        state_unlock(device);                         \
        return result;                                \
    } while (0)

/* Copy a text into a caller's buffer. */
nvml_return nvml_text(char *target, unsigned int length, const char *source);

#endif
