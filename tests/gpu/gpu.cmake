# What ./dev gpu runs: programs that drive one device, the conformance suite of tests/unit/kernels on
# the first card, the shim in front of the driver, and, where nvcc is, what the card can do at best.
# None of them is part of `all` but those that the dry run needs.

# CUDA's driver for clients of the emulated device, by the name by which programs know it.
if(TARGET luna_emulated)
  add_library(fake_cuda MODULE tests/emulation/fake_cuda.c)
  target_compile_options(fake_cuda PRIVATE ${LUNA_WARNINGS} -fno-sanitize=all)
  target_link_options(fake_cuda PRIVATE -fno-sanitize=all)
  set_target_properties(fake_cuda PROPERTIES PREFIX "" OUTPUT_NAME cuda LIBRARY_OUTPUT_DIRECTORY fake)
  target_link_options(fake_cuda PRIVATE -Wl,-soname,libcuda.so.1)
endif()

if(TARGET luna_emulated AND LUNA_SANITIZE STREQUAL "")
  add_executable(gpu_model tests/gpu/gpu_model.c)
  target_link_libraries(gpu_model PRIVATE luna_models cmocka)
  add_executable(gpu_run tests/gpu/gpu_run.c)
  target_link_libraries(gpu_run PRIVATE luna_models)
  add_executable(gpu_oom_test tests/gpu/gpu_oom_test.c)
  target_link_libraries(gpu_oom_test PRIVATE cmocka ${CMAKE_DL_LIBS})
  target_include_directories(gpu_oom_test PRIVATE ${CMAKE_SOURCE_DIR})
  add_library(gpu_oom MODULE tests/gpu/gpu_oom.c)
  target_link_libraries(gpu_oom PRIVATE ${CMAKE_DL_LIBS})
  add_library(fake_driver MODULE tests/gpu/fake_driver.c)
  foreach(name gpu_model gpu_run gpu_oom gpu_oom_test fake_driver)
    target_compile_options(${name} PRIVATE ${LUNA_WARNINGS})
    set_target_properties(${name} PROPERTIES PREFIX "" RUNTIME_OUTPUT_DIRECTORY gpu
                          LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/gpu)
  endforeach()
  foreach(name ${DEVICE_TESTS})
    add_executable(cuda_test_${name} EXCLUDE_FROM_ALL tests/unit/kernels/test_${name}.c)
    target_compile_options(cuda_test_${name} PRIVATE ${LUNA_WARNINGS})
    target_compile_definitions(cuda_test_${name} PRIVATE LUNA_TEST_GPU="cuda:0" LUNA_TEST_CARD)
    target_link_libraries(cuda_test_${name} PRIVATE luna_kernels cmocka)
    set_target_properties(cuda_test_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY gpu)
    list(APPEND GPU_PROGRAMS cuda_test_${name} emulated_test_${name})
  endforeach()
  list(APPEND GPU_PROGRAMS gpu_model gpu_run gpu_oom gpu_oom_test fake_driver luna luna_emulated)
endif()

if(TARGET luna_cuda)
  get_filename_component(CUDA_LIBRARIES ${CUDA_RUNTIME} DIRECTORY)
  add_custom_command(
    OUTPUT ${CMAKE_BINARY_DIR}/gpu/gpu_peak
    COMMAND ${NVCC} -std=c++17 -O3 -Werror all-warnings -cudart static -Xcompiler -Wall,-Wextra,-Werror
            "-gencode=arch=compute_80,code=[${CUDA_CODES}]" -L${CUDA_LIBRARIES}
            ${CMAKE_SOURCE_DIR}/tests/gpu/gpu_peak.cu -o ${CMAKE_BINARY_DIR}/gpu/gpu_peak -ldl
    DEPENDS tests/gpu/gpu_peak.cu COMMENT "nvcc gpu_peak")
  add_custom_target(gpu_peak DEPENDS ${CMAKE_BINARY_DIR}/gpu/gpu_peak)
  list(APPEND GPU_PROGRAMS luna_cuda gpu_peak)
endif()

# Everything that ./dev gpu --bundle packs, or ./dev gpu runs from the build folder.
if(GPU_PROGRAMS)
  add_custom_target(gpu_programs DEPENDS ${GPU_PROGRAMS})
endif()
