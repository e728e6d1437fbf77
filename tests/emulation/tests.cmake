# The conformance suite of tests/unit/kernels on the emulated device, and the emulator's own tests.
# ./dev test runs them with several seeds, under the sanitizers, and against the race detector's
# library (LD_LIBRARY_PATH=race).

function(luna_emulation_program name source)
  add_executable(${name} tests/emulation/${source}.cpp ${EMULATION_CORE_SOURCES} ${ARGN})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_options(${name} PRIVATE ${EMULATION_OPTIONS})
  target_link_libraries(${name} PRIVATE cmocka)
  set_target_properties(${name} PROPERTIES CXX_STANDARD 17 CXX_EXTENSIONS OFF
                        RUNTIME_OUTPUT_DIRECTORY tests)
endfunction()

# The tests of kernels/ that run on any device.
set(DEVICE_TESTS conformance_attention conformance_convolution conformance_edges conformance_exact
    conformance_finite conformance_linear lane linears)
if(TARGET luna_emulated)
  foreach(name ${DEVICE_TESTS})
    add_executable(emulated_test_${name} tests/unit/kernels/test_${name}.c)
    target_compile_options(emulated_test_${name} PRIVATE ${LUNA_WARNINGS})
    target_compile_definitions(emulated_test_${name} PRIVATE LUNA_TEST_GPU="emulated")
    target_link_libraries(emulated_test_${name} PRIVATE luna_kernels cmocka)
    set_target_properties(emulated_test_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY tests)
    add_dependencies(emulated_test_${name} luna_emulated)
  endforeach()
  set(EMULATION_CORE_SOURCES kernels/emulation/block.cpp kernels/emulation/memory.cpp
      kernels/emulation/tensor_core.cpp kernels/emulation/hopper.cpp)
  foreach(name primitives hopper)
    luna_emulation_program(emulated_test_${name} test_${name})
    if(TARGET luna_emulated_race)
      luna_emulation_program(emulated_race_${name} test_${name} kernels/emulation/race.cpp)
      target_compile_definitions(emulated_race_${name} PRIVATE LUNA_TEST_RACES)
      set_property(SOURCE tests/emulation/test_${name}.cpp PROPERTY COMPILE_OPTIONS
        "$<$<STREQUAL:$<TARGET_PROPERTY:NAME>,emulated_race_${name}>:-O1;-fsanitize=thread>")
    endif()
  endforeach()
  foreach(name models faults)
    add_executable(emulated_test_${name} tests/emulation/test_${name}.c)
    target_compile_options(emulated_test_${name} PRIVATE ${LUNA_WARNINGS})
    target_compile_definitions(emulated_test_${name} PRIVATE LUNA_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
    target_link_libraries(emulated_test_${name} PRIVATE luna_models cmocka)
    set_target_properties(emulated_test_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY tests)
    add_dependencies(emulated_test_${name} luna_emulated)
  endforeach()
endif()

# The host code of the CUDA driver against a runtime of no card, where the toolkit's headers are.
find_path(CUDA_INCLUDE cuda_runtime_api.h PATHS /usr/local/cuda/include)
if(CUDA_INCLUDE AND NOT LUNA_FUZZ)
  add_executable(emulated_test_driver_cuda tests/emulation/test_driver_cuda.c
                 tests/emulation/fake_runtime.c
                 kernels/cuda/driver_cuda.c kernels/cuda/driver_cuda_card.c
                 kernels/cuda/driver_cuda_loan.c kernels/cuda/spans.c)
  target_include_directories(emulated_test_driver_cuda SYSTEM PRIVATE ${CUDA_INCLUDE})
  target_compile_options(emulated_test_driver_cuda PRIVATE ${LUNA_WARNINGS})
  target_link_libraries(emulated_test_driver_cuda PRIVATE luna_base cmocka Threads::Threads)
  set_target_properties(emulated_test_driver_cuda PROPERTIES RUNTIME_OUTPUT_DIRECTORY tests)
endif()

# Graphs of programs on the emulated device, and the keys that programs have.
if(TARGET luna_emulated)
  add_executable(emulated_test_graphs tests/emulation/test_graphs.c kernels/cuda/graph_key.c)
  target_compile_options(emulated_test_graphs PRIVATE ${LUNA_WARNINGS})
  target_compile_definitions(emulated_test_graphs PRIVATE LUNA_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  target_link_libraries(emulated_test_graphs PRIVATE luna_models cmocka)
  set_target_properties(emulated_test_graphs PROPERTIES RUNTIME_OUTPUT_DIRECTORY tests)
  add_dependencies(emulated_test_graphs luna_emulated)
endif()

# Products by cuBLASLt against a library that multiplies on the host.
find_path(CUBLASLT_INCLUDE cublasLt.h PATHS ${CUDA_INCLUDE} /usr/local/cuda/include)
if(CUDA_INCLUDE AND CUBLASLT_INCLUDE AND NOT LUNA_FUZZ)
  add_library(fake_cublaslt MODULE tests/emulation/fake_cublaslt.c ${BASE_SOURCES})
  add_executable(emulated_test_driver_blas tests/emulation/test_driver_blas.c
                 kernels/cuda/driver_cuda_blas.c)
  foreach(target fake_cublaslt emulated_test_driver_blas)
    target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR})
    target_include_directories(${target} SYSTEM PRIVATE ${CUDA_INCLUDE} ${CUBLASLT_INCLUDE})
    target_compile_options(${target} PRIVATE ${LUNA_WARNINGS})
    set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY tests
                          LIBRARY_OUTPUT_DIRECTORY tests)
  endforeach()
  target_compile_definitions(emulated_test_driver_blas PRIVATE
                             FAKE_CUBLASLT="$<TARGET_FILE:fake_cublaslt>")
  target_link_libraries(emulated_test_driver_blas PRIVATE luna_base cmocka ${CMAKE_DL_LIBS}
                        Threads::Threads)
  add_dependencies(emulated_test_driver_blas fake_cublaslt)
endif()
