# The conformance suite of tests/unit/kernels on the emulated device, and the emulator's own tests.
# ./dev test runs them with several seeds, under the sanitizers, and against the race detector's
# library (LD_LIBRARY_PATH=race).

if(TARGET luna_emulated)
  foreach(name conformance conformance_exact)
    add_executable(emulated_test_${name} tests/unit/kernels/test_${name}.c)
    target_compile_options(emulated_test_${name} PRIVATE ${LUNA_WARNINGS})
    target_compile_definitions(emulated_test_${name} PRIVATE LUNA_TEST_EMULATED)
    target_link_libraries(emulated_test_${name} PRIVATE luna_kernels cmocka)
    set_target_properties(emulated_test_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY tests)
    add_dependencies(emulated_test_${name} luna_emulated)
  endforeach()
endif()
